"""refine_grn: what it finds on a known graph, which edges it keeps, and what it leaves as it was."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score

import scvi_causal
from scvi_causal.data import corrupt_grn, simulate_screen
from scvi_causal.metrics import log1p_normalize
from scvi_causal.model.vci._refine_fit import resolve_refine_options

FAST = {"size_factor_key": "library", "accelerator": "cpu", "seed": 0}


def make_screen(n_genes=60, seed=0, **options):
    settings = {
        "n_perturbations": 15,
        "n_cells_per_perturbation": 60,
        "n_control": 600,
        "mean_expression": 5.0,
    } | options
    simulation = simulate_screen(n_genes=n_genes, seed=seed, **settings)
    prior = corrupt_grn(simulation.grn, drop=0.3, add=0.7, genes=list(simulation.adata.var_names), seed=seed)
    simulation.adata.uns["grn"] = prior
    return simulation


@pytest.fixture(scope="module")
def simulation():
    return make_screen()


@pytest.fixture(scope="module")
def table(simulation):
    return scvi_causal.refine_grn(simulation.adata, max_epochs=80, **FAST)


def matrix_of(edges, genes, column=None):
    found = np.zeros((len(genes),) * 2)
    values = 1.0 if column is None else edges[column].abs().to_numpy()
    found[genes.get_indexer(edges["source"]), genes.get_indexer(edges["target"])] = values
    return found


# ---------------------------------------------------------------------- what it finds


def test_refined_beats_prior_and_correlation(simulation, table):
    genes = simulation.adata.var_names
    truth, prior = matrix_of(simulation.grn, genes) > 0, matrix_of(simulation.adata.uns["grn"], genes)
    x = np.asarray(log1p_normalize(simulation.adata.X, simulation.adata.obs["library"].to_numpy()).todense())
    off = ~np.eye(len(genes), dtype=bool)
    scores = {"prior": prior, "correlation": np.abs(np.corrcoef(x.T)), "refined": matrix_of(table, genes, "weight")}
    found = {name: average_precision_score(truth[off], score[off]) for name, score in scores.items()}
    assert found["refined"] > found["prior"] + 0.15
    assert found["refined"] > found["correlation"] + 0.3
    kept = matrix_of(table[table["kept"]], genes) > 0
    precision = {"prior": truth[prior > 0].mean(), "refined": truth[kept].mean()}
    assert precision["refined"] > precision["prior"] + 0.15
    assert kept[truth & (prior > 0)].mean() > 0.7


def test_edges_point_from_regulator_to_target_and_have_a_sign(simulation, table):
    merged = simulation.grn.merge(table[table["kept"]], on=["source", "target"], suffixes=("", "_refined"))
    assert (np.sign(merged["weight"]) == np.sign(merged["weight_refined"])).mean() > 0.95
    turned = simulation.grn.merge(
        table[table["kept"]], left_on=["source", "target"], right_on=["target", "source"], suffixes=("", "_refined")
    )
    assert len(merged) > 5 * max(len(turned), 1)


def test_interventions_tell_the_direction():
    """A chain A -> B with both perturbed and a prior with both directions: only A -> B is left where it counts."""
    graph = pd.DataFrame({"source": ["A"], "target": ["B"], "weight": [0.8]})
    options = {
        "n_genes": 4,
        "perturbations": ["A", "B"],
        "n_cells_per_perturbation": 300,
        "shift": -3.0,
        "noise_sd": 0.2,
    }
    simulation = make_screen(
        graph=graph, **{**options, "n_perturbations": 2, "n_control": 300, "mean_expression": 20.0}
    )
    adata = simulation.adata
    adata.uns["grn"] = pd.DataFrame({"source": ["A", "B"], "target": ["B", "A"]})
    weight = {}
    for interventions in (True, False):
        found = scvi_causal.refine_grn(adata, interventions=interventions, max_epochs=30, **FAST)
        found = found.set_index(["source", "target"])["weight"]
        weight[interventions] = found["A", "B"] - found["B", "A"]
    assert weight[True] > weight[False] + 0.1


def test_only_training_cells_are_learned_from(simulation):
    """Nonsense in the test cells changes nothing."""
    adata = simulation.adata.copy()
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 3 == 0, "test", "train")
    adata.obs.loc[adata.obs_names[1::7], "split"] = "valid"
    options = {**FAST, "split_key": "split", "max_epochs": 3}
    first = scvi_causal.refine_grn(adata, **options)
    test = np.flatnonzero(adata.obs["split"] == "test")
    x = adata.X.toarray()
    x[test] = np.random.default_rng(0).poisson(3.0, x[test].shape)
    adata.X = x
    pd.testing.assert_frame_equal(scvi_causal.refine_grn(adata, **options), first)


@pytest.fixture(scope="module")
def drugged():
    """A drug that moves A and D, which no edge connects; C regulates D."""
    simulation = simulate_screen(
        graph=pd.DataFrame({"source": ["C", "A"], "target": ["D", "E"], "weight": [0.8, 0.5]}),
        n_genes=6,
        perturbations=pd.DataFrame({"token": ["drug"] * 2, "gene": ["A", "D"], "shift": [2.0, 2.0]}),
        n_cells_per_perturbation=400,
        n_control=400,
        mean_expression=100.0,
        noise_sd=0.5,
        seed=0,
    )
    simulation.adata.uns["grn"] = pd.DataFrame({"source": ["C", "A"], "target": ["D", "D"]})
    return simulation.adata


def test_what_a_drug_moves_is_no_regulation(drugged):
    found = scvi_causal.refine_grn(drugged, max_epochs=60, **FAST).set_index(["source", "target"])["weight"]
    assert found["C", "D"] > 3 * abs(found["A", "D"])


def test_a_drug_can_be_a_regulator(drugged):
    found = scvi_causal.refine_grn(drugged, regulators=["drug"], max_epochs=60, **FAST)
    weight = found[found["source"] == "drug"].set_index("target")["weight"]
    assert weight[["A", "D"]].min() > 3 * weight.drop(["A", "D", "E"]).abs().max()


# ---------------------------------------------------------------------- which edges are kept


def test_number_of_edges(simulation):
    found = scvi_causal.refine_grn(simulation.adata.copy(), n_edges=37, max_epochs=3, **FAST)
    assert found["kept"].sum() == 37
    assert found["weight"].abs().to_numpy()[: 37 + 1].min() <= found.loc[found["kept"], "weight"].abs().min()
    assert found["kept"].to_numpy()[:37].all()


def test_thresholds_are_nested(simulation):
    kept = []
    for threshold in (0.5, 1.0, 3.0, 1e6):
        found = scvi_causal.refine_grn(simulation.adata.copy(), threshold=threshold, max_epochs=10, **FAST)
        kept.append(set(map(tuple, found.loc[found["kept"], ["source", "target"]].to_numpy())))
    assert all(after <= before for before, after in zip(kept, kept[1:], strict=False))
    assert kept[0]
    assert not kept[-1]


def test_published_thresholds():
    """Nested; nothing above 1; below the background everything but self-loops."""
    adata = make_screen(n_genes=12, n_perturbations=3, n_cells_per_perturbation=10, n_control=40).adata
    options = {**FAST, "preset": "paper", "max_epochs": 1}
    everything = scvi_causal.refine_grn(adata, threshold=-1.0, **options)
    assert everything["kept"].all()
    assert len(everything) == 12 * 11
    assert not (everything["source"] == everything["target"]).any()
    assert not scvi_causal.refine_grn(adata, threshold=1.0, **options)["kept"].any()
    assert adata.uns["scvi_causal"]["refined_grn"]["background"] == pytest.approx(0.15999, abs=1e-5)
    assert everything["weight"].between(0, 1).all()


def test_table_is_complete_and_sorted(simulation, table):
    prior = set(map(tuple, simulation.adata.uns["grn"][["source", "target"]].to_numpy()))
    assert list(table.columns) == ["source", "target", "weight", "prior", "kept"]
    assert set(map(tuple, table.loc[table["prior"], ["source", "target"]].to_numpy())) == prior
    assert table["weight"].abs().is_monotonic_decreasing
    assert not table.duplicated(["source", "target"]).any()
    stored = simulation.adata.uns["refined_grn"]
    assert (stored["prior"] | stored["kept"]).all()
    assert len(stored) == (table["prior"] | table["kept"]).sum()


def test_listing_can_be_cut(simulation):
    found = scvi_causal.refine_grn(simulation.adata.copy(), n_listed=5, max_epochs=2, n_edges=10, **FAST)
    assert (~found["prior"] & ~found["kept"]).sum() == 5


# ---------------------------------------------------------------------- how it behaves


def test_same_seed_same_table_and_nothing_global(simulation):
    adata = simulation.adata.copy()
    columns, uns = list(adata.obs.columns), set(adata.uns)
    state = torch.get_rng_state()
    tables = [scvi_causal.refine_grn(adata, max_epochs=2, **{**FAST, "seed": seed}) for seed in (3, 3, 4)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0]["weight"].equals(tables[2]["weight"])
    assert torch.equal(torch.get_rng_state(), state)
    assert list(adata.obs.columns) == columns
    assert set(adata.uns) == uns | {"refined_grn", "scvi_causal"}
    assert not adata.obsm


@pytest.mark.parametrize("model", ["SCCVAE", "GIM", "GraphVCI"])
def test_models_take_the_refined_network(simulation, table, model):
    adata = simulation.adata.copy()
    model_class = getattr(scvi_causal, model)
    model_class.setup_anndata(adata, grn_key="refined_grn", size_factor_key="library")
    edges = model_class(adata)._prior_grn()
    kept = set(map(tuple, table.loc[table["kept"], ["source", "target"]].to_numpy()))
    assert set(map(tuple, edges[["source", "target"]].to_numpy())) == kept


def test_counts_dense_layers_and_continuous_data_agree(simulation):
    adata = simulation.adata.copy()
    adata.layers["counts"] = adata.X.toarray()
    first = scvi_causal.refine_grn(adata, max_epochs=2, **FAST)
    log = np.asarray(log1p_normalize(adata.X, adata.obs["library"].to_numpy()).todense())
    adata.X = log
    pd.testing.assert_frame_equal(scvi_causal.refine_grn(adata, layer="counts", max_epochs=2, **FAST), first)
    continuous = scvi_causal.refine_grn(adata, data_type="continuous", max_epochs=2, accelerator="cpu", seed=0)
    np.testing.assert_allclose(continuous["weight"], first["weight"], atol=1e-4)


def test_strata_are_taken_out():
    """Two genes that differ between batches only are no regulator and target."""
    graph = pd.DataFrame({"source": ["A", "B"], "target": ["B", "C"], "weight": [0.5, 0.5]})
    simulation = make_screen(n_genes=6, graph=graph, n_perturbations=1, n_control=900, n_batches=2, batch_sd=2.0)
    adata = simulation.adata
    adata.uns["grn"] = graph
    weights = {}
    for key in (None, "batch"):
        found = scvi_causal.refine_grn(adata, regulators="all", batch_key=key, max_epochs=60, **FAST)
        weights[key] = found.loc[~found["prior"], "weight"].abs().max()
    assert weights["batch"] < 0.5 * weights[None]


def test_genes_without_expression_and_constant_tokens_do_no_harm():
    simulation = make_screen(n_genes=12, n_perturbations=3, n_cells_per_perturbation=20, n_control=60)
    adata = simulation.adata
    x = adata.X.toarray()
    x[:, :3] = 0
    adata.X = x
    found = scvi_causal.refine_grn(adata, regulators="all", max_epochs=3, **FAST)
    silent = adata.var_names[:3]
    assert np.isfinite(found["weight"]).all()
    assert not found.loc[found["source"].isin(silent) | found["target"].isin(silent), "weight"].any()


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_edges": 5, "threshold": 1.0}, "pass one of them"),
        ({"n_edges": 0}, "n_edges=0: pass at least 1"),
        ({"form": "lineer"}, "form='lineer' is not one of"),
        ({"preset": "papers"}, "preset='papers' is not one of"),
        ({"regulators": ["G1", "GG1"]}, "regulators names .* 'GG1'"),
        ({"regulators": "some"}, "neither 'prior' nor 'all'"),
        ({"form": "attention", "regulators": ["G01"]}, "every gene is a node"),
        ({"keep_prior": 0.0}, "have to be probabilities"),
        ({"edge_penalty": -1.0}, "is below 0"),
        ({"perturbation_key": "perturbations"}, "Did you mean"),
        ({"grn_key": "network"}, "network"),
        ({"n_listed": -1}, "pass at least"),
        ({"data_type": "count"}, "data_type='count' is not one of"),
    ],
)
def test_errors_name_what_is_wrong(options, message):
    adata = make_screen(n_genes=12, n_perturbations=3, n_cells_per_perturbation=10, n_control=40).adata
    with pytest.raises(ValueError, match=message):
        scvi_causal.refine_grn(adata, **{**FAST, "max_epochs": 1, **options})
    assert "refined_grn" not in adata.uns


def test_a_prior_is_needed():
    adata = make_screen(n_genes=12, n_perturbations=3, n_cells_per_perturbation=10, n_control=40).adata
    del adata.uns["grn"]
    with pytest.raises(ValueError, match=r"adata.uns\['grn'\]"):
        scvi_causal.refine_grn(adata, **FAST)


def test_published_configuration():
    options = resolve_refine_options("paper", {})
    assert (options.lr, options.network_lr, options.weight_decay, options.batch_size) == (5e-3, 3e-4, 4e-7, 64)
    assert options.keep_prior == pytest.approx(0.98201379)
    assert options.keep_other == pytest.approx(0.01798621)
    assert options.edge_penalty == pytest.approx(4.9356e-6, rel=1e-4)
    assert (options.max_epochs, options.patience, options.regulators) == (230, 20, "all")


def test_many_candidates_take_part_less_often():
    from scvi_causal.model.vci._refine_fit import keep_rate

    options = resolve_refine_options("recommended", {})
    assert keep_rate(options, 10_000) == 0.25
    assert keep_rate(options, 10_000_000) == pytest.approx(0.05)
    assert keep_rate(resolve_refine_options("recommended", {"keep_other": 0.7}), 10_000_000) == 0.7


def test_without_other_edges_the_prior_is_weighed(simulation):
    found = scvi_causal.refine_grn(simulation.adata.copy(), keep_other=0.0, max_epochs=20, **FAST)
    assert not found.loc[~found["prior"], "weight"].any()
    assert 0 < found["kept"].sum() < found["prior"].sum()


def test_table_survives_a_file(simulation, table, tmp_path):
    import anndata as ad

    simulation.adata.write_h5ad(tmp_path / "screen.h5ad")
    adata = ad.read_h5ad(tmp_path / "screen.h5ad")
    scvi_causal.GraphVCI.setup_anndata(adata, grn_key="refined_grn", size_factor_key="library")
    assert len(scvi_causal.GraphVCI(adata)._prior_grn()) == table["kept"].sum()


def test_data_are_not_held_on_to(simulation):
    from scvi_causal.model.vci._refine import _Screen

    scvi_causal.refine_grn(simulation.adata.copy(), max_epochs=1, **FAST)
    assert not _Screen._setup_adata_manager_store


def test_a_misspelt_network_gets_its_look_alikes():
    adata = simulate_screen(n_genes=20, n_cells_per_perturbation=5, n_control=20, seed=0).adata
    adata.uns["network"] = adata.uns.pop("grn")
    before = set(adata.uns)
    with pytest.raises(ValueError, match="Did you mean 'network'"):
        scvi_causal.refine_grn(adata, "netwrk")
    assert set(adata.uns) == before
