"""GPOVAE on data: which edges it finds, what it answers, and what it makes of odd screens."""

from __future__ import annotations

import builtins

import numpy as np
import pandas as pd
import pytest
import scvi
from anndata import AnnData
from scipy.sparse import csr_matrix
from sklearn.metrics import average_precision_score

from scvi_causal import GPOVAE, metrics
from scvi_causal.data import simulate_screen

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
TINY = {"n_latent": 4, "n_hidden": 8}


def fit(adata, max_epochs=2, seed=0, setup=None, train=None, **options):
    scvi.settings.seed = seed
    GPOVAE.setup_anndata(adata, **{"size_factor_key": "library", **(setup or {})})
    model = GPOVAE(adata, **{**TINY, **options})
    model.train(max_epochs=max_epochs, **QUIET, **(train or {}))
    return model


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(
        n_genes=30, n_perturbations=18, n_cells_per_perturbation=80, n_control=600, n_combinations=2, seed=4
    )


@pytest.fixture(scope="module")
def bare(screen):
    """The screen without its true network."""
    adata = screen.adata.copy()
    del adata.uns["grn"]
    return adata


@pytest.fixture(scope="module")
def trained(bare):
    return fit(bare.copy(), 20, n_latent=8, n_hidden=32)


def average_precision(screen, edges) -> float:
    true = set(zip(screen.grn["source"], screen.grn["target"], strict=True))
    tokens = [t for t in screen.tokens if t in set(edges["source"])]
    score = edges.set_index(["source", "target"])["weight"].abs()
    pairs = [(a, b) for a in tokens for b in screen.adata.var_names if a != b]
    return average_precision_score([p in true for p in pairs], score.reindex(pairs).fillna(0.0))


def test_direct_edges_are_told_from_indirect_ones(screen, bare, trained):
    x = metrics.log1p_normalize(bare.X, bare.obs["library"].to_numpy())
    pairs = metrics.pair_effects(x, bare.obs["perturbation"].to_numpy(), bare.var_names)
    by_effect = max(
        average_precision(screen, metrics.rank_by_effect(pairs, by)) for by in ("lfc", "statistic", "wasserstein")
    )
    direct = average_precision(screen, trained.get_grn(min_probability=0.0))
    every_effect = average_precision(screen, fit(bare.copy(), 1, indirect="none").get_grn(min_probability=0.0))
    assert direct > by_effect + 0.05
    assert direct > every_effect + 0.05


def test_edges_are_signed(screen, trained):
    true = screen.grn.set_index(["source", "target"])["weight"]
    edges = trained.get_grn(min_probability=0.9).set_index(["source", "target"])
    common = edges.index.intersection(true.index)
    assert len(common) > 10
    assert (edges.loc[common, "sign"] == np.sign(true[common])).mean() > 0.9
    # knock-downs: what an activator loses, its target loses
    assert (np.sign(edges.loc[common, "weight"]) == -np.sign(true[common])).mean() > 0.9


def test_edge_list(trained, bare):
    edges = trained.get_grn()
    assert (edges["source"] != edges["target"]).all()
    assert not edges.duplicated(["source", "target"]).any()
    assert edges["weight"].abs().is_monotonic_decreasing
    assert (edges["probability"] >= 0.5).all()
    assert (edges["prior"] == 0).all()
    assert (trained.get_grn(threshold=0.5)["weight"].abs() >= 0.5).all()
    n_tokens = len(trained.seen_tokens_)
    assert len(trained.get_grn(min_probability=0.0)) == n_tokens * (bare.n_vars - 1)
    with pytest.raises(ValueError, match="from 0 to 1"):
        trained.get_grn(min_probability=2)


def test_total_effects_are_more_than_direct_ones(trained):
    total, direct = (trained.get_grn(min_probability=0.0, effects=kind) for kind in ("total", "direct"))
    merged = total.merge(direct, on=["source", "target"], suffixes=("_total", "_direct"))
    assert len(merged) == len(total)
    assert not np.allclose(merged["weight_total"], merged["weight_direct"])
    assert len(trained.get_grn(effects="total")) > len(trained.get_grn())
    with pytest.raises(ValueError, match="'direct', 'total'"):
        trained.get_grn(effects="indirect")


def test_masks_are_named_by_nodes(trained):
    masks = trained.get_perturbation_masks()
    assert masks.columns.tolist() == trained.node_names_.tolist()
    token = masks.index[0]
    assert masks.loc[token, token] > 0.999
    edges = trained.get_grn().query("source == @token")
    assert (masks.loc[token, edges["target"]] >= 0.5).all()
    assert trained.get_perturbation_embedding([token]).var_names.tolist() == trained.node_names_.tolist()


def test_untrained_model_has_no_network(bare):
    GPOVAE.setup_anndata(bare)
    with pytest.raises(RuntimeError, match=r"Train the GPOVAE first"):
        GPOVAE(bare, **TINY).get_grn()


def test_a_given_network_is_used(screen, bare):
    weak = simulate_screen(
        n_genes=30, n_perturbations=18, n_cells_per_perturbation=15, n_control=100, graph=screen.grn, seed=5
    )
    without = fit_without(weak)
    model = fit(weak.adata.copy(), 1)
    edges, plain = (m.get_grn(min_probability=0.0).set_index(["source", "target"]) for m in (model, without))
    given = edges.index[edges["prior"] != 0]
    assert len(given) > 10
    assert edges.loc[given, "probability"].mean() > plain.loc[given, "probability"].mean() + 0.02
    prior = model.module.mechanisms.prior_probability
    assert len(prior.unique()) == 3  # own gene, given, others
    # and it stays a prior: what the cells contradict is not an edge
    assert (edges.loc[given, "probability"] < 0.5).any()


def fit_without(screen):
    adata = screen.adata.copy()
    del adata.uns["grn"]
    return fit(adata, 1)


def test_predictions(bare, trained, screen):
    token = screen.tokens[0]
    controls = np.flatnonzero(bare.obs["perturbation"] == "control")
    drawn = trained.predict_counterfactual([token], indices=controls, output="log1p", sample=True, seed=0).X
    x = metrics.log1p_normalize(bare.X, bare.obs["library"].to_numpy()).toarray()
    before, after = x[controls].mean(0), x[(bare.obs["perturbation"] == token).to_numpy()].mean(0)
    found = np.asarray(drawn).mean(0) - before
    assert np.corrcoef(found, after - before)[0, 1] > 0.95
    assert 0.8 < (found @ (after - before)) / ((after - before) @ (after - before)) < 1.2


def test_only_training_cells_choose_nodes_and_edges(bare):
    adata = bare.copy()
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 3 == 0, "test", "train")
    first = fit(adata, 1, train={"split_key": "split"}, extra_genes=5)
    changed, test = bare.copy(), np.arange(adata.n_obs) % 3 == 0
    changed.obs["split"] = adata.obs["split"]
    dense = changed.X.toarray()
    dense[test] = np.random.default_rng(0).permutation(dense[test])
    changed.X = csr_matrix(dense)
    second = fit(changed, 1, train={"split_key": "split"}, extra_genes=5)
    assert len(first.node_names_) == 23
    assert first.get_grn().equals(second.get_grn())


def test_unseen_tokens_are_refused(bare, screen):
    adata = bare.copy()
    gene = next(g for g in adata.var_names if g not in screen.tokens)
    model = fit(adata, setup={"extra_tokens": [gene]})
    report = model.can_predict([gene]).iloc[0]
    assert not report["predictable"]
    assert "which edges leave it" in report["reason"]
    assert gene in model.node_names_  # others may act on it
    assert gene not in set(model.get_grn(min_probability=0.0)["source"])
    with pytest.raises(ValueError, match=gene):
        model.predict_counterfactual(gene)


def test_perturbation_of_a_single_cell_and_one_node(bare, screen):
    label = screen.tokens[0]
    rows = np.flatnonzero(bare.obs["perturbation"].isin([label, "control"]))
    one = np.concatenate([rows[bare.obs["perturbation"].iloc[rows] == "control"], rows[-1:]])
    keep = np.union1d(one, np.flatnonzero(bare.obs["perturbation"] == label)[:1])
    model = fit(bare[keep].copy(), extra_genes=None, train={"train_size": 1.0})
    assert model.module.n_nodes == 1
    assert model.get_perturbation_masks().shape == (1, 1)
    assert model.get_grn().empty
    model.predict_counterfactual(label)
    assert np.isfinite(model.adata.layers["counterfactual"]).all()
    many = fit(bare[keep].copy(), train={"train_size": 1.0})
    assert np.isfinite(many.get_grn(min_probability=0.0)["weight"]).all()


def test_saved_and_loaded(trained, bare, tmp_path):
    trained.save(tmp_path / "model")
    loaded = GPOVAE.load(tmp_path / "model", adata=bare.copy())
    assert loaded.get_grn().equals(trained.get_grn())
    with pytest.warns(UserWarning, match="loaded without anndata"):
        alone = GPOVAE.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"GPOVAE.load\(folder, adata=adata\)"):
        alone.sample_cells(n_cells=1)
    with pytest.raises(ValueError, match=r"GPOVAE.load\(folder, adata=adata\)"):
        alone.get_average_treatment_effects()
    assert loaded.get_perturbation_masks().equals(trained.get_perturbation_masks())


def test_combinations_add_up(trained):
    import torch

    dosage = torch.zeros(3, len(trained._vocabulary))
    dosage[0, 0] = dosage[1, 1] = dosage[2, 0] = dosage[2, 1] = 1.0
    nodes = trained.module.condition_of(dosage)
    assert torch.allclose(nodes[2], nodes[0] + nodes[1], atol=1e-6)
    assert trained.module.condition_of(torch.zeros(1, dosage.shape[1])).shape == (1, trained.module.n_nodes)


def test_quality_is_optional(bare):
    adata = bare.copy()
    adata.obs["quality"] = np.where(np.arange(adata.n_obs) % 4 == 0, "fail", "pass")
    model = fit(adata, setup={"quality_key": "quality"})
    model.predict_counterfactual(quality="pass")
    assert model.module.n_kinds == 1
    without = fit(bare.copy())
    with pytest.raises(ValueError, match="quality_key"):
        without.predict_counterfactual(quality="pass")
    cells = without.sample_cells(n_cells=2)
    assert cells.n_vars == bare.n_vars
    assert set(cells.obs["library"]) <= set(bare.obs["library"])  # of whole cells, as it is registered
    token = without.seen_tokens_[0]
    effects = without.get_average_treatment_effects(token, n_samples=20)
    assert effects.shape == (1, bare.n_vars)
    assert np.abs(effects.to_numpy()).max() > 0.01
    assert "mask_prior: learned" in without._model_summary_string
    with pytest.raises(ValueError, match="quality_key"):
        without.sample_cells(n_cells=2, quality="pass")


def test_published_network_is_a_threshold_of_changes(bare, screen):
    options = {"preset": "paper", "n_guide_hidden": 8, "n_particles": 1, "matching": "random", "extra_genes": "all"}
    options |= {"n_hops": 0, "change_threshold": 0.4, "density_weight": 0.0}
    model = fit(bare.copy(), 50, setup={"size_factor_key": None}, train={"plan_kwargs": {"lr": 3e-2}}, **options)
    masks = model.get_perturbation_masks(screen.tokens)[bare.var_names.tolist()].to_numpy()
    total = np.asarray(bare.X.sum(1))
    x = np.log1p(bare.X.toarray() * np.median(total) / total)
    labels, rng = bare.obs["perturbation"].to_numpy(), np.random.default_rng(0)
    controls = rng.choice(np.flatnonzero(labels == "control"), bare.n_obs)
    change = np.abs(x - x[controls])
    median = np.stack([np.median(change[labels == token], 0) for token in screen.tokens])
    clear = np.abs(median - 0.4) > 0.15  # every cell is matched to another control in each epoch
    assert ((masks > 0.5) == (median > 0.4))[clear].mean() > 0.95
    assert 0.1 < (median > 0.4)[clear].mean() < 0.9


def test_transport_is_optional(bare, monkeypatch):
    GPOVAE.setup_anndata(bare)
    given = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "ot":
            raise ImportError(name)
        return given(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="matching='random'"):
        GPOVAE(bare, preset="paper", **TINY, n_guide_hidden=4)


def test_matched_by_transport(bare):
    pytest.importorskip("ot")
    model = fit(bare.copy(), preset="paper", n_guide_hidden=4, n_particles=1, setup={"size_factor_key": None})
    assert model.history["train_loss"].iloc[-1].notna().all()


def test_what_makes_cells_fail_is_no_edge():
    """Cells of one token fail five times as often as controls; failing changes five genes, and the token none."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", "A", "B"], [600, 300, 300])
    failed = rng.random(len(labels)) < np.where(labels == "A", 0.75, 0.15)
    rate = np.full((len(labels), 20), 5.0)
    rate[np.ix_(failed, np.arange(5))] *= 4.0
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    adata = AnnData(csr_matrix(rng.poisson(rate).astype(np.float32)), obs)
    adata.var_names = [f"g{i}" for i in range(20)]
    adata.obs["library"], adata.obs["quality"] = 1000.0, np.where(failed, "fail", "pass")
    found = {}
    for key in (None, "quality"):
        model = fit(adata.copy(), 1, setup={"quality_key": key}, extra_genes="all")
        found[key] = set(model.get_grn().query("source == 'A'")["target"])
    assert found[None] >= {f"g{i}" for i in range(5)}
    assert not found["quality"]
