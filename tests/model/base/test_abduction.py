"""What only a model with latents, a distribution and abduction can show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_causal.model.base._walk import step_size, summarise

from .conftest import Toy, make_cells


def test_training_learns_the_effects(toy):
    fold = toy.module.log_fold.detach().numpy()
    assert toy._get_vocabulary().tokens == ("A", "B")
    assert 0.7 < fold[0, 0] < 1.5
    assert -1.5 < fold[1, 1] < -0.6
    losses = toy.history["train_loss"].to_numpy(dtype=float)
    assert losses[-1] < losses[0]


def test_this_very_cell(toy, cells):
    toy.predict_counterfactual("A", output="counts")
    info = cells.uns["scvi_causal"]["counterfactual"]
    assert info["n_sources_replaced"] == 0
    x = cells.X.toarray()
    fold = toy.module.log_fold.detach().numpy()
    is_a = (cells.obs["perturbation"] == "A").to_numpy()
    is_b = (cells.obs["perturbation"] == "B").to_numpy()
    layer = cells.layers["counterfactual"]
    np.testing.assert_allclose(layer[is_a], x[is_a] + 0.1, rtol=1e-4)
    np.testing.assert_allclose(layer[is_b], (x[is_b] + 0.1) * np.exp(fold[0] - fold[1]), rtol=1e-4)


def test_delta_has_common_random_numbers(toy, cells):
    fold = toy.module.log_fold.detach().numpy()
    control = np.flatnonzero(cells.obs["perturbation"] == "control")
    same = toy.predict_counterfactual("control", output="delta", sample=True, n_samples=3, key_added=None)
    np.testing.assert_array_equal(same.X[control], 0)
    delta = toy.predict_counterfactual("A", output="delta", n_samples=50, indices=control, key_added=None)
    # the latent factor cancels where expression is far above 1 per 10,000
    np.testing.assert_allclose(delta.X.mean(0), fold[0], atol=0.02)
    assert delta.layers["counterfactual_std"].max() < 0.01


def test_latents_are_drawn_for_several_samples(toy, cells):
    answer = toy.predict_counterfactual("A", n_samples=200, indices=np.arange(20), key_added=None)
    ratio = answer.layers["counterfactual_std"] / answer.X
    np.testing.assert_allclose(ratio, toy.module.width, rtol=0.25)
    # draws of different cells are independent, in one batch and across batches
    split = toy.predict_counterfactual("A", n_samples=200, indices=np.arange(20), batch_size=7, key_added=None)
    np.testing.assert_allclose(split.X, answer.X, rtol=0.05)
    assert len(np.unique(np.round(ratio[:, 0], 5))) == 20


def test_draws_are_from_the_distribution(toy, cells):
    rows = np.zeros(2_000, dtype=int)
    toy.module.width = 0.0
    draws = toy.predict_counterfactual("A", indices=rows, sample=True, output="counts", key_added=None).X
    mean = toy.predict_counterfactual("A", indices=[0], output="counts", key_added=None).X[0]
    theta = toy.module.log_theta.exp().detach().numpy()
    variance = mean + mean**2 / theta
    np.testing.assert_allclose(draws.mean(0), mean, atol=6 * np.sqrt(variance / 2_000).max())
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.3)
    assert (draws == draws.round()).all()


def test_combination_of_seen_tokens(toy):
    table = toy.can_predict(["A+B", "C", "A+C"])
    assert table["predictable"].tolist() == [True, False, False]
    assert table.loc["A+B", "reason"] == "combination of predictable tokens"
    fold = toy.module.log_fold.detach().numpy()
    both = toy.predict_counterfactual(["A+B"], indices=[0], output="counts").X[0]
    base = toy.predict_counterfactual(["control"], indices=[0], output="counts").X[0]
    np.testing.assert_allclose(both, base * np.exp(fold.sum(0)), rtol=1e-4)


def test_negative_dosage(toy):
    plus = toy.predict_counterfactual(["A", "A", "control"], dosage=[1.0, -1.0, 1.0], indices=[0], output="counts")
    np.testing.assert_allclose(plus.X[0] * plus.X[1], plus.X[2] ** 2, rtol=1e-4)


def test_sources_with_unknown_tokens_are_refused(toy):
    query = make_cells(seed=1)
    query.obs["perturbation"] = np.where(query.obs["perturbation"] == "B", "Z", query.obs["perturbation"])
    with pytest.raises(ValueError, match="30 source cells"):
        toy.predict_counterfactual("A", adata=query)
    toy.predict_counterfactual("A", adata=query, indices=(query.obs["perturbation"] != "Z").to_numpy())


def test_many_tokens_are_handed_over_in_part(toy, monkeypatch):
    import scvi_causal.model.base._walk as walk

    whole = toy.predict_counterfactual(["A", "B", "A+B", "control"], indices=[0, 1])
    monkeypatch.setattr(walk, "_MANY_TOKENS", 0)
    part = toy.predict_counterfactual(["A", "B", "A+B", "control"], indices=[0, 1], batch_size=2)
    np.testing.assert_array_equal(whole.X, part.X)


def test_latent_representation(toy, cells):
    latent = toy.get_latent_representation(indices=[3, 1], batch_size=1)
    np.testing.assert_allclose(latent[:, 0], np.log1p(cells.X.toarray().sum(1)[[3, 1]]), rtol=1e-5)


def test_cells_without_counts_have_no_library(toy):
    query = make_cells(seed=1)
    query.X[5] = 0
    query.X.eliminate_zeros()
    with pytest.raises(ValueError, match="counts"):
        toy.predict_counterfactual("A", adata=query)


def test_effects_of_a_model_with_latents(toy):
    effects = toy.get_perturbation_effects(["A"], n_samples=30, n_cells=40).set_index("gene")
    fold = toy.module.log_fold.detach().numpy()[0] / np.log(2)
    np.testing.assert_allclose(effects["lfc_mean"], fold, atol=0.05)
    assert bool(effects.loc["g0", "is_de_fdr_0.05"])


def test_summary_of_draws():
    draws = torch.arange(101.0).reshape(101, 1, 1)
    found = summarise(draws, sample=False)
    assert [round(float(found[k]), 4) for k in ("", "_q05", "_q95")] == [50, 5, 95]
    assert float(found["_std"]) == pytest.approx(float(draws.std()))
    assert float(summarise(draws, sample=True)[""]) == 0
    assert list(summarise(draws[:1], sample=False)) == [""]


def test_quantiles_are_those_of_numpy():
    draws = torch.randn(17, 3, 4, generator=torch.Generator().manual_seed(0))
    found = summarise(draws, sample=False)
    for name, q in (("_q05", 0.05), ("_q95", 0.95)):
        np.testing.assert_allclose(found[name], np.quantile(draws.numpy(), q, axis=0), rtol=1e-5, atol=1e-6)


def test_a_model_whose_requirements_are_not_met():
    class Needy(Toy):
        requires_grn = True

    with pytest.raises(ValueError, match="grn"):
        Needy.setup_anndata(make_cells())


def test_graph_makes_tokens_predictable(cells):
    class Graph(Toy):
        unseen = ("graph", "combinations")

    Graph.setup_anndata(cells)
    model = Graph(cells)
    table = model.can_predict(["g3", "nowhere"])
    assert table["predictable"].tolist() == [True, False]
    assert "graph" in table.loc["g3", "reason"]


def test_query_stratum_without_training_control_is_named():
    from scvi_causal.model import PerturbedMean

    def with_batches(seed):
        adata = make_cells(seed=seed)
        adata.obs["batch"] = np.where(np.arange(120) // 4 % 2 == 0, "b1", "b2")
        return adata

    adata = with_batches(0)
    adata.obs["split"] = np.where(
        (adata.obs["batch"] == "b2") & (adata.obs["perturbation"] == "control"), "test", "train"
    )
    PerturbedMean.setup_anndata(adata, batch_key="batch")
    model = PerturbedMean(adata)
    model.train(split_key="split")
    query = with_batches(1)
    query = query[(query.obs["perturbation"] == "A").to_numpy()].copy()
    query.obs_names = "q" + query.obs_names
    with pytest.warns(UserWarning, match="15 cells of the query.*batch=b2"):
        model.predict_counterfactual(adata=query)
    assert np.isfinite(query.layers["counterfactual"]).all()


def test_step_size_is_bounded_by_memory_and_by_use():
    assert step_size(1, 1_000) == 512
    assert step_size(100, 8_000) == 83
    assert step_size(10_000, 30_000) == 16
