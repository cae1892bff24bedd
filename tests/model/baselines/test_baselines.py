"""What each baseline predicts, against effects computed by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scvi_causal.model import Additive, ControlMean, LinearEffect, NearestPerturbation, PerturbedMean
from scvi_causal.model.baselines._table import effect_table

N_GENES = 8


def make(n_per=40, seed=0, types=("x", "y"), labels=("A", "B", "A+B", "C"), missing=()):
    """Counts of all labels in all types, except for the (type, label) pairs in ``missing``."""
    rng = np.random.default_rng(seed)
    fold = {"A": rng.normal(0, 0.6, N_GENES), "B": rng.normal(0, 0.6, N_GENES), "C": rng.normal(0, 0.6, N_GENES)}
    rows = [
        (t, label) for t in types for label in ("control", *labels) for _ in range(n_per) if (t, label) not in missing
    ]
    obs = pd.DataFrame(rows, columns=["cell_type", "perturbation"], index=[f"c{i}" for i in range(len(rows))])
    base = rng.gamma(3, 2, N_GENES) + 1
    shift = np.array(
        [sum((fold[t] for t in p.split("+") if t in fold), np.zeros(N_GENES)) for p in obs["perturbation"]]
    )
    kind = (obs["cell_type"] == "y").to_numpy()[:, None] * rng.normal(0, 0.5, N_GENES)
    library = rng.uniform(0.5, 2, len(rows))[:, None]
    counts = rng.poisson(base * np.exp(shift + kind) * library * 3).astype(np.float32)
    obs["split"] = "train"
    return ad.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


def log1p(adata):
    x = adata.X.toarray().astype(float)
    return np.log1p(x / x.sum(1, keepdims=True) * 1e4)


def means(adata, x=None):
    """Mean log1p expression of each (type, label)."""
    x = log1p(adata) if x is None else x
    keys = list(zip(adata.obs["cell_type"], adata.obs["perturbation"], strict=True))
    return {key: x[[k == key for k in keys]].mean(0) for key in set(keys)}


def fit(cls, adata, covariates=True, **kwargs):
    features = "features" if "features" in adata.uns else None
    cls.setup_anndata(
        adata, categorical_covariate_keys=["cell_type"] if covariates else None, perturbation_features_key=features
    )
    model = cls(adata, **kwargs)
    model.train(split_key="split")
    return model


def population_shift(model, adata, target, kind, **kwargs):
    """Change of the mean of the controls of a cell type under a target."""
    rows = np.flatnonzero((adata.obs["cell_type"] == kind) & (adata.obs["perturbation"] == "control"))
    answer = model.predict_counterfactual([target], indices=rows, output="log1p", **kwargs)
    return answer.X.astype(float).mean(0) - log1p(adata)[rows].mean(0)


# ---------------------------------------------------------------------- the table


def test_table_of_effects_is_that_of_group_means():
    adata = make(missing=[("y", "C")])
    model = fit(Additive, adata)
    table = effect_table(model.adata_manager, np.arange(adata.n_obs), N_GENES, "log1p")
    by_hand, x = means(adata), log1p(adata)
    labels = model._get_vocabulary().decode(table.conditions)
    assert sorted(labels) == ["A", "A+B", "B", "C"]
    assert len(table.effect) == 7
    for i, (c, s) in enumerate(zip(table.row_condition, table.row_stratum, strict=True)):
        kind = "xy"[s]
        np.testing.assert_allclose(table.effect[i], by_hand[kind, labels[c]] - by_hand[kind, "control"], atol=1e-5)
        cells = x[((adata.obs["cell_type"] == kind) & (adata.obs["perturbation"] == labels[c])).to_numpy()]
        np.testing.assert_allclose(table.perturbed_variance[i], cells.var(0, ddof=1) / len(cells), rtol=1e-4)
    for s, kind in enumerate("xy"):
        np.testing.assert_allclose(table.control_mean[s], by_hand[kind, "control"], rtol=1e-5)
    controls = (adata.obs["perturbation"] == "control").to_numpy()
    np.testing.assert_allclose(table.control_mean[-1], x[controls].mean(0), rtol=1e-5)


def test_only_training_cells_count():
    adata = make()
    adata.obs.loc[adata.obs_names[::3], "split"] = "test"
    model = fit(Additive, adata)
    spoiled = adata.copy()
    spoiled.X = csr_matrix(np.where((adata.obs["split"] == "test").to_numpy()[:, None], 50, adata.X.toarray()))
    other = fit(Additive, spoiled)
    np.testing.assert_array_equal(model.module.effect, other.module.effect)


def test_one_cell_has_the_variance_of_the_controls():
    adata = make()
    rows = np.flatnonzero((adata.obs["cell_type"] == "x") & (adata.obs["perturbation"] == "C"))
    adata.obs.loc[adata.obs_names[rows[1:]], "split"] = "test"
    model = fit(Additive, adata)
    table = effect_table(model.adata_manager, np.sort(model.train_indices), N_GENES, "log1p")
    labels = model._get_vocabulary().decode(table.conditions)
    row = np.flatnonzero((labels[table.row_condition] == "C") & (table.row_stratum == 0)).item()
    x, obs = log1p(adata), adata.obs
    within = [x[((obs["cell_type"] == t) & (obs["perturbation"] == "control")).to_numpy()].var(0, ddof=1) for t in "xy"]
    np.testing.assert_allclose(table.perturbed_variance[row], np.mean(within, 0), rtol=1e-4)


def test_no_perturbed_training_cell():
    adata = make()
    adata.obs.loc[adata.obs["perturbation"] != "control", "split"] = "test"
    with pytest.raises(ValueError, match="perturbed"):
        fit(Additive, adata)


def test_stratum_without_controls_uses_all_controls(caplog):
    adata = make()
    adata.obs.loc[(adata.obs["cell_type"] == "y") & (adata.obs["perturbation"] == "control"), "split"] = "test"
    model = fit(PerturbedMean, adata)
    assert "no training control" in caplog.text
    by_hand = means(adata)
    table = effect_table(model.adata_manager, np.sort(model.train_indices), N_GENES, "log1p")
    row = np.flatnonzero(table.row_stratum == 1)[0]
    label = model._get_vocabulary().decode(table.conditions)[table.row_condition[row]]
    np.testing.assert_allclose(table.effect[row], by_hand["y", label] - by_hand["x", "control"], atol=1e-5)


# ---------------------------------------------------------------------- the shift


def test_population_moves_by_exactly_the_effect_and_no_cell_below_zero():
    adata = make()
    model = fit(Additive, adata)
    by_hand = means(adata)
    for kind in "xy":
        effect = by_hand[kind, "A"] - by_hand[kind, "control"]
        assert (effect < 0).any()
        assert (effect > 0).any()
        np.testing.assert_allclose(population_shift(model, adata, "A", kind), effect, atol=1e-5)
    assert model.predict_counterfactual(["A"], output="log1p").X.min() >= 0


def test_more_cannot_be_taken_away_than_is_there():
    adata = make()
    model = fit(Additive, adata)
    model.module.effect.fill_(-100.0)
    assert not model.predict_counterfactual(["A"], output="counts").X.any()


def test_a_single_population_is_predicted_with_the_estimates():
    adata = make()
    model = fit(Additive, adata)
    plain = model.predict_counterfactual(["A"], output="log1p")
    drawn = model.predict_counterfactual(["A"], output="log1p", sample=True)
    np.testing.assert_array_equal(plain.X, drawn.X)


def test_spread_is_the_sampling_error_of_the_effect():
    adata = make()
    model = fit(Additive, adata, covariates=False)
    x, labels = log1p(adata), adata.obs["perturbation"].to_numpy()
    perturbed, control = x[labels == "A"], x[labels == "control"]
    expected = np.sqrt(perturbed.var(0, ddof=1) / len(perturbed) + control.var(0, ddof=1) / len(control))
    draws = model.predict_counterfactual(["A"], indices=[0, 1], output="log1p", n_samples=600)
    up = perturbed.mean(0) - control.mean(0) > 4 * expected
    assert up.sum() >= 2
    spread = draws.layers["counterfactual_std"]
    np.testing.assert_allclose(spread[0, up], expected[up], rtol=0.15)
    # one error for all cells of a population, in one batch or in two
    np.testing.assert_allclose(spread[0, up], spread[1, up], rtol=1e-4)
    split = model.predict_counterfactual(["A"], indices=[0, 1], output="log1p", n_samples=600, batch_size=1)
    np.testing.assert_allclose(split.layers["counterfactual_std"], spread, rtol=1e-4, atol=1e-6)


def test_uncertainty_shrinks_with_data():
    few, many = make(n_per=15), make(n_per=240)
    spread = []
    for adata in (few, many):
        effects = fit(Additive, adata).get_perturbation_effects(["A"], n_samples=60, n_cells=2_000)
        spread.append(effects["lfc_std"].mean())
    assert 2 < spread[0] / spread[1] < 8  # a factor of 4 in expectation


def test_continuous_data_are_shifted_on_their_own_scale():
    adata = make()
    adata.X = csr_matrix(adata.X.toarray() - 3.5)
    model = fit(Additive, adata, covariates=False)
    assert model.module.scale == "continuous"
    x, labels = adata.X.toarray(), adata.obs["perturbation"].to_numpy()
    effect = x[labels == "A"].mean(0) - x[labels == "control"].mean(0)
    rows = np.flatnonzero(labels == "control")
    answer = model.predict_counterfactual(["A"], indices=rows)
    np.testing.assert_allclose(answer.X, x[rows] + effect, atol=1e-4)
    delta = model.predict_counterfactual(["A"], indices=rows, output="delta")
    np.testing.assert_allclose(delta.X, np.tile(effect, (len(rows), 1)), atol=1e-4)
    with pytest.raises(ValueError, match="continuous"):
        model.predict_counterfactual(["A"], output="counts")


def test_scale_is_that_of_the_training_data(tmp_path):
    adata = make()
    adata.X = csr_matrix(adata.X.toarray() + 0.5)
    fit(Additive, adata).save(str(tmp_path / "m"))
    assert Additive.load(str(tmp_path / "m"), adata=False, accelerator="cpu").module.scale == "continuous"
    assert Additive.load(str(tmp_path / "m"), adata=make(), accelerator="cpu").module.scale == "continuous"


# ---------------------------------------------------------------------- the rules


def test_control_mean_changes_nothing():
    adata = make()
    model = fit(ControlMean, adata)
    np.testing.assert_allclose(population_shift(model, adata, "A", "x"), 0, atol=1e-5)


def test_perturbed_mean_counts_each_perturbation_once():
    adata = make()
    drop = adata.obs_names[(adata.obs["perturbation"] == "C").to_numpy()][5:]
    adata = adata[~adata.obs_names.isin(drop)].copy()
    model = fit(PerturbedMean, adata, covariates=False)
    x, labels = log1p(adata), adata.obs["perturbation"].to_numpy()
    expected = np.mean([x[labels == p].mean(0) for p in ("A", "B", "A+B", "C")], 0) - x[labels == "control"].mean(0)
    for target in ("A", "C", "g3"):  # g3 is a measured gene that nobody perturbed
        np.testing.assert_allclose(model.get_perturbation_embedding([target]).X[0], expected, atol=1e-5)


def test_additive_sums_single_effects_of_unseen_combinations():
    adata = make()
    adata.obs.loc[adata.obs["perturbation"] == "A+B", "split"] = "test"
    model = fit(Additive, adata)
    by_hand = means(adata)
    for kind in "xy":
        control = by_hand[kind, "control"]
        expected = by_hand[kind, "A"] + by_hand[kind, "B"] - 2 * control
        np.testing.assert_allclose(
            population_shift(model, adata, "B+A", kind), np.maximum(expected, -control), atol=1e-5
        )


def test_additive_gives_a_seen_combination_its_own_effect():
    adata = make()
    model = fit(Additive, adata)
    by_hand = means(adata)
    np.testing.assert_allclose(
        population_shift(model, adata, "A+B", "x"), by_hand["x", "A+B"] - by_hand["x", "control"], atol=1e-5
    )


def test_additive_sums_combinations_of_few_cells():
    adata = make()
    rare = np.flatnonzero(adata.obs["perturbation"] == "A+B")
    adata.obs.iloc[rare[9:], adata.obs.columns.get_loc("split")] = "test"
    model = fit(Additive, adata, covariates=False)
    x, label = log1p(adata), adata.obs["perturbation"].to_numpy(str)
    mean = {t: x[label == t].mean(0) for t in ("control", "A", "B")}
    expected = np.maximum(mean["A"] + mean["B"] - 2 * mean["control"], -mean["control"])
    answer = model.predict_counterfactual(["A+B"], indices=np.flatnonzero(label == "control"), output="log1p")
    np.testing.assert_allclose(answer.X.astype(float).mean(0) - mean["control"], expected, atol=1e-5)


def test_additive_takes_cells_apart_that_are_conditions_of_their_own():
    rng = np.random.default_rng(0)
    tokens, effect = np.array(list("ABCDEFGH")), rng.normal(size=(8, N_GENES))
    carried = rng.random((120, 8)) < 0.4
    carried[:30] = False
    x = 5.0 + rng.normal(size=N_GENES) + carried @ effect
    obs = pd.DataFrame({"perturbation": ["+".join(tokens[row]) or "control" for row in carried], "split": "train"})
    adata = ad.AnnData(csr_matrix(x.astype(np.float32)), obs.set_index(obs.index.astype(str)))
    assert adata.obs["perturbation"].value_counts().iloc[1:].max() < 10
    model = fit(Additive, adata, covariates=False)
    answer = model.predict_counterfactual(["A", "B+H"], indices=[0], output="normalized")
    np.testing.assert_allclose(answer.X - x[0], [effect[0], effect[1] + effect[7]], atol=1e-3)


def test_additive_carries_a_perturbation_to_another_context():
    adata = make(types=("x", "y", "z"))
    adata.obs.loc[(adata.obs["cell_type"] == "z") & (adata.obs["perturbation"] == "C"), "split"] = "test"
    model = fit(Additive, adata)
    by_hand = means(adata)
    expected = np.mean([by_hand[t, "C"] - by_hand[t, "control"] for t in "xy"], 0)
    control = by_hand["z", "control"]
    np.testing.assert_allclose(population_shift(model, adata, "C", "z"), np.maximum(expected, -control), atol=1e-5)


def test_additive_gives_an_unseen_token_the_mean_of_the_singles():
    adata = make()
    adata.obs.loc[adata.obs["perturbation"] == "C", "split"] = "test"
    model = fit(Additive, adata, covariates=False)
    x, labels = log1p(adata), adata.obs["perturbation"].to_numpy()
    effect = {p: x[labels == p].mean(0) - x[labels == "control"].mean(0) for p in ("A", "B")}
    mean = (effect["A"] + effect["B"]) / 2
    found = model.get_perturbation_embedding(["C", "A+C"]).X
    np.testing.assert_allclose(found[0], mean, atol=1e-5)
    np.testing.assert_allclose(found[1], effect["A"] + mean, atol=1e-5)


def test_additive_interpolates_dosages():
    adata = make(labels=("A", "B"))
    high = np.flatnonzero(adata.obs["perturbation"] == "A")[::2]
    adata.obs["dose"] = np.where(np.isin(np.arange(adata.n_obs), high), 3.0, 1.0)
    Additive.setup_anndata(adata, dosage_key="dose")
    model = Additive(adata)
    model.train(split_key="split")
    x, labels, dose = log1p(adata), adata.obs["perturbation"].to_numpy(), adata.obs["dose"].to_numpy()
    one, three = (x[(labels == "A") & (dose == d)].mean(0) - x[labels == "control"].mean(0) for d in (1, 3))
    delta = model.predict_counterfactual(
        ["A"] * 4, dosage=[0.5, 1, 2, 10], indices=np.flatnonzero(labels == "control"), output="log1p"
    )
    n = (labels == "control").sum()
    found = delta.X.reshape(4, n, N_GENES).mean(1) - x[labels == "control"].mean(0)
    for got, expected in zip(found, (one / 2, one, (one + three) / 2, three), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def features(adata, values):
    adata.uns["features"] = pd.DataFrame(
        values, index=["A", "B", "C", "D"], columns=[f"f{i}" for i in range(len(values[0]))]
    )


def test_linear_effect_follows_the_features():
    adata = make(labels=("A", "B", "C"))
    features(adata, [[1.0, 0], [0, 1], [1, 1], [2, 0]])
    model = fit(LinearEffect, adata, covariates=False, alpha=1e-6)
    own = fit(Additive, adata, covariates=False).get_perturbation_embedding(["A", "B", "C"]).X
    found = model.get_perturbation_embedding(["A", "B", "D"]).X
    np.testing.assert_allclose(found[:2], own[:2], atol=1e-3)
    # the plane through three effects, at (2, 0): intercept a + b - c, slope c - b along the first axis
    np.testing.assert_allclose(found[2], own[0] + own[1] - own[2] + 2 * (own[2] - own[1]), atol=1e-3)


def test_linear_effect_needs_features_or_the_bilinear_form():
    adata = make()
    LinearEffect.setup_anndata(adata)
    with pytest.raises(ValueError, match="bilinear"):
        LinearEffect(adata)
    for bad in ({"form": "cubic"}, {"alpha": 0.0, "form": "bilinear"}, {"n_factors": 0, "form": "bilinear"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            LinearEffect(adata, **bad)


def test_bilinear_effect_uses_the_perturbed_genes():
    adata = make(labels=("A", "B", "C"))
    adata.var_names = ["A", "B", "C", "D", *adata.var_names[4:]]
    model = fit(LinearEffect, adata, covariates=False, form="bilinear", n_factors=2)
    found = model.get_perturbation_embedding(["A", "B", "C", "D", "g5"]).X
    assert not np.allclose(found[0], found[1])
    own = fit(Additive, adata, covariates=False).get_perturbation_embedding(["A", "B", "C"]).X
    assert ((found[:3] - own) ** 2).sum() < (own**2).sum()


def test_bilinear_effect_of_a_token_that_is_no_gene_is_the_mean():
    adata = make()
    model = fit(LinearEffect, adata, covariates=False, form="bilinear")
    own = fit(Additive, adata, covariates=False).get_perturbation_embedding(["A", "B", "A+B", "C"]).X
    np.testing.assert_allclose(model.get_perturbation_embedding(["A"]).X[0], own.sum(0) / 5, atol=1e-5)


def test_nearest_perturbation_is_the_nearest():
    adata = make(labels=("A", "B", "C"))
    features(adata, [[0.0, 0], [1, 0], [5, 5], [0.9, 0.1]])
    model = fit(NearestPerturbation, adata, covariates=False, n_neighbors=1)
    own = fit(Additive, adata, covariates=False).get_perturbation_embedding(["A", "B", "C"]).X
    found = model.get_perturbation_embedding(["A", "D", "A+D"]).X
    np.testing.assert_allclose(found, [own[0], own[1], own[0] + own[1]], atol=1e-5)
    for bad in ({"n_neighbors": 0}, {"metric": "taxi"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            NearestPerturbation(adata, **bad)


def test_nearest_perturbation_needs_features():
    with pytest.raises(ValueError, match="perturbation_features_key"):
        NearestPerturbation.setup_anndata(make())


def test_arguments_of_iterative_training_are_taken_and_ignored():
    adata = make()
    PerturbedMean.setup_anndata(adata)
    model = PerturbedMean(adata)
    model.train(max_epochs=7, batch_size=3, early_stopping=True, plan_kwargs={"lr": 1}, enable_progress_bar=False)
    assert model.is_trained
    assert len(model.history["train_loss"]) == 1


def test_training_again_replaces_the_effects():
    adata = make()
    adata.obs["later"] = np.where(adata.obs["perturbation"] == "C", "test", "train")
    PerturbedMean.setup_anndata(adata)
    model = PerturbedMean(adata)
    model.train(split_key="split")
    before = model.predict_counterfactual(["A"], indices=[0]).X
    model.train(split_key="later")
    after = model.predict_counterfactual(["A"], indices=[0]).X
    assert "C" not in model.seen_tokens_
    assert not np.allclose(before, after)
