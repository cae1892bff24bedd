"""Average effects with intervals: the same table, on the same footing, from every model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from .conftest import HELD_OUT, make_screen

METHODS = ["group", "robust", "tuned", "mean"]


def outcomes(model, adata) -> np.ndarray:
    """(cells, genes) on the scale that effects are on, worked out from the raw matrix."""
    x = adata.X.toarray().astype(float)
    return x if model.module.scale == "continuous" else np.log1p(1e4 * x / x.sum(1, keepdims=True))


def used(screen) -> np.ndarray:
    """Cells that were not held out."""
    return screen.obs["split"].to_numpy() != "test"


def by_hand(model, screen, target, cell_type=None):
    """Welch's test of the observed cells, and the genes for which it is the last word: ten cells of an arm express them, or all."""
    here = used(screen) & ((screen.obs["cell_type"] == cell_type) if cell_type else True)
    y, labels = outcomes(model, screen), screen.obs["perturbation"].astype(str).to_numpy()
    cells, controls = (y[here & (labels == label)] for label in (target, "control"))
    common = np.all([(x != 0).sum(0) >= min(10, len(x)) for x in (cells, controls)], axis=0)
    return cells.mean(0) - controls.mean(0), stats.ttest_ind(cells, controls, equal_var=False), common


def test_table(model, screen):
    table = model.get_marginal_effects(["G1", "G2+G1"], method=METHODS)
    assert len(table) == 4 * 2 * 2 * screen.n_vars
    assert table.columns.tolist() == [
        "perturbation", "contrast", "cell_type", "gene", "method", "mean", "mean_contrast", "estimate", "se", "ci_low",
        "ci_high", "statistic", "pvalue", "padj", "n_cells", "n_perturbed", "n_contrast", "balance_z", "flag",
    ]  # fmt: skip
    assert table["perturbation"].unique().tolist() == ["G1", "G1+G2"]
    assert (table["contrast"] == "control").all()
    assert table["gene"].tolist()[: screen.n_vars] == screen.var_names.tolist()
    observed = table[table["method"] != "mean"]
    numbers = observed.select_dtypes("number")
    assert np.isfinite(numbers.to_numpy()).all()
    assert (observed["ci_low"] <= observed["estimate"]).all()
    assert (observed["estimate"] <= observed["ci_high"]).all()
    assert observed["pvalue"].between(0, 1).all()
    model_alone = table[table["method"] == "mean"]
    assert (model_alone["flag"] == "model only").all()
    assert model_alone["estimate"].notna().all()
    assert model_alone["se"].isna().all()


def test_group_means_are_welchs_test_of_observed_cells(model, screen):
    table = model.get_marginal_effects("G1", method="group")
    for cell_type, found in table.groupby("cell_type", observed=True):
        difference, welch, common = by_hand(model, screen, "G1", cell_type)
        np.testing.assert_allclose(found["estimate"], difference, rtol=1e-5, atol=1e-6)
        assert common.sum() > 5
        np.testing.assert_allclose(found["pvalue"][common], welch.pvalue[common], rtol=1e-3, atol=1e-9)
        assert (found["pvalue"] >= welch.pvalue * (1 - 1e-3)).all()
        assert (
            found["n_perturbed"]
            == len(screen.obs[used(screen)].query("perturbation == 'G1' and cell_type == @cell_type"))
        ).all()
    pooled = model.get_marginal_effects("G1", groupby=[], method="group")
    difference, welch, common = by_hand(model, screen, "G1")
    np.testing.assert_allclose(pooled["estimate"], difference, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pooled["ci_low"][common], welch.confidence_interval().low[common], rtol=1e-4, atol=1e-5)


def test_within_strata_a_model_that_only_knows_strata_changes_nothing(model):
    table = model.get_marginal_effects(["G1"], groupby=["cell_type", "batch"], method=["group", "robust"])
    group, robust = (table[table["method"] == name].reset_index(drop=True) for name in ("group", "robust"))
    np.testing.assert_allclose(robust["estimate"], group["estimate"], atol=1e-9)
    np.testing.assert_allclose(robust["se"], group["se"], rtol=1e-6)
    np.testing.assert_array_equal(robust["balance_z"], 0)


def test_robust_is_the_group_mean_and_the_imbalance_of_the_strata(model, screen):
    """From predictions of the public API: means over the training controls of each stratum."""
    if model.module.scale == "counts":
        pytest.skip("predictions are drawn")
    table = model.get_marginal_effects("G1", groupby=[], method="robust")
    labels = screen.obs["perturbation"].astype(str).to_numpy()
    training = (screen.obs["split"] == "train").to_numpy() & (labels == "control")
    stratum = screen.obs["cell_type"].astype(str) + screen.obs["batch"].astype(str)
    output = "normalized" if model.module.scale == "continuous" else "log1p"
    f = {}
    for target in ("G1", "control"):
        answer = model.predict_counterfactual([target], indices=np.flatnonzero(training), output=output).X
        means = {s: answer[(stratum[training] == s).to_numpy()].mean(0) for s in stratum.unique()}
        f[target] = np.stack([means[s] for s in stratum])
    expected, *_ = by_hand(model, screen, "G1")
    here = used(screen)
    for target, sign in (("G1", 1), ("control", -1)):
        arm = f[target][here & (labels == target)]
        expected = expected + sign * (f[target][here].mean(0) - arm.mean(0))
    np.testing.assert_allclose(table["estimate"], expected, rtol=1e-4, atol=1e-5)


def test_defaults_are_the_training_conditions_within_the_covariates(model):
    table = model.get_marginal_effects(method="group")
    assert set(table["perturbation"]) == set(model.seen_conditions_) - {"control"}
    assert set(table["cell_type"]) == {"T cell", "B cell"}


def test_what_was_held_out_is_not_used(model, screen):
    """Change the cells of the test part: nothing moves. Name them: they count."""
    before = model.get_marginal_effects(["G1", "G1+G2"], method=["group", "robust"])
    assert before["n_cells"].groupby(before["cell_type"]).first().sum() == used(screen).sum()
    everything = model.get_marginal_effects(HELD_OUT[0], method="group", indices=np.arange(screen.n_obs))
    assert (everything["n_perturbed"] > 0).all()


@pytest.mark.parametrize("target", HELD_OUT)
def test_unseen_perturbations_are_marked_or_refused(model, target):
    if not model.can_predict([target])["predictable"].iloc[0]:
        with pytest.raises(ValueError, match=f"cannot predict 1 of 2 targets: '{target.replace('+', '.')}'"):
            model.get_marginal_effects([target])
        return
    table = model.get_marginal_effects([target, "G1"])
    unseen, seen = (table[table["perturbation"] == name] for name in (target, "G1"))
    assert (unseen["flag"] == "model only").all()
    assert (unseen["n_perturbed"] == 0).all()
    assert unseen["estimate"].notna().all()
    assert unseen[["se", "ci_low", "ci_high", "pvalue", "padj"]].isna().all(axis=None)
    assert seen["se"].notna().all()


def test_a_context_without_the_perturbation_is_marked(model, screen):
    gone = used(screen) & ~((screen.obs["perturbation"] == "G1") & (screen.obs["cell_type"] == "B cell")).to_numpy()
    table = model.get_marginal_effects("G1", indices=gone, method=["robust", "group"])
    flags = table.groupby(["cell_type", "method"])["flag"].unique()
    assert flags["B cell", "robust"].tolist() == ["model only"]
    assert flags["B cell", "group"].tolist() == ["not observed"]
    assert "model only" not in "".join(flags["T cell", "robust"])


def test_contrasts(model):
    against = model.get_marginal_effects("G1", contrast="G2", method="group")
    back = model.get_marginal_effects("G2", contrast="G1", method="group")
    np.testing.assert_allclose(against["estimate"], -back["estimate"])
    alone = model.get_marginal_effects(["G1", "control"], contrast=None, method=["group", "robust"])
    assert alone["contrast"].isna().all()
    effect = model.get_marginal_effects("G1", method=["group", "robust"])
    means = alone.pivot_table(
        index=["method", "cell_type", "gene"], columns="perturbation", values="estimate", observed=True
    )
    expected = (means["G1"] - means["control"]).rename("estimate")
    found = effect.set_index(["method", "cell_type", "gene"])["estimate"].reindex(expected.index)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    nothing = model.get_marginal_effects("control")
    assert (nothing[["estimate", "se"]] == 0).all(axis=None)


def test_clusters_and_bands(model, screen):
    screen.obs["donor"] = np.char.add("d", (np.arange(screen.n_obs) // 10 % 6).astype(str))
    table = model.get_marginal_effects("G1", groupby=[], cluster_key="donor", simultaneous=True)
    assert table["n_clusters"].between(3, 6).all()
    assert (table["band_low"] <= table["ci_low"]).all()
    with pytest.raises(ValueError, match="Did you mean 'donor'"):
        model.get_marginal_effects("G1", cluster_key="donr")


def test_calls_are_repeatable_and_leave_nothing_behind(model, screen):
    before, state = screen.obs.copy(), torch.get_rng_state()
    one, again = (model.get_marginal_effects(["G1"], seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(one, again)
    pd.testing.assert_frame_equal(screen.obs, before)
    assert torch.equal(torch.get_rng_state(), state)
    # a small batch size predicts the same means; drawn predictions differ by their noise
    small = model.get_marginal_effects(["G1"], seed=3, batch_size=7)
    if model.module.scale != "counts":
        np.testing.assert_allclose(small["estimate"], one["estimate"], rtol=1e-4, atol=1e-5)


def test_cross_fitting_trains_without_the_cells_it_predicts(model, case, screen, monkeypatch):
    seen = []
    train = type(model).train

    def watched(self, *args, **kwargs):
        result = train(self, *args, **kwargs)
        seen.append((set(self.train_indices), set(screen.obs_names[screen.obs[kwargs["split_key"]] == "test"])))
        return result

    monkeypatch.setattr(type(model), "train", watched)
    kwargs = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, **case.train}
    columns = screen.obs.columns.tolist()
    table = model.get_marginal_effects(["G1"], cross_fit=2, groupby=[], train_kwargs=kwargs)
    assert screen.obs.columns.tolist() == columns
    assert np.isfinite(table["estimate"]).all()
    assert len(seen) == 2
    assert not seen[0][0] & seen[1][0]  # with two folds no cell trains both
    plain = model.get_marginal_effects(["G1"], groupby=[])
    assert (table["n_cells"] == plain["n_cells"]).all()
    # same cells, other predictions: the estimates are close, because predictions only correct
    assert (abs(table["estimate"] - plain["estimate"]) < 3 * plain["se"]).all()


def test_cross_fitting_is_for_training_data(model, screen):
    with pytest.raises(ValueError, match="train_kwargs"):
        model.get_marginal_effects("G1", train_kwargs={"max_epochs": 1})
    with pytest.raises(ValueError, match="2 or more folds"):
        model.get_marginal_effects("G1", cross_fit=1)
    query = make_screen(seed=1)
    query.obs_names = [f"other{i}" for i in range(query.n_obs)]
    with pytest.raises(ValueError, match="these are other cells"):
        model.get_marginal_effects("G1", adata=query, cross_fit=2)


def test_query_cells(model):
    query = make_screen(seed=1)
    query.obs_names = [f"other{i}" for i in range(query.n_obs)]
    table = model.get_marginal_effects(["G1"], adata=query)
    assert table["n_cells"].groupby(table["cell_type"]).first().sum() == query.n_obs
    group = model.get_marginal_effects(["G1"], adata=query, method="group", groupby=[])
    y, labels = outcomes(model, query), query.obs["perturbation"].astype(str).to_numpy()
    expected = y[labels == "G1"].mean(0) - y[labels == "control"].mean(0)
    np.testing.assert_allclose(group["estimate"], expected, rtol=1e-5, atol=1e-6)


def test_predictions_from_cells_need_abduction(model):
    if model.can_abduct:
        table = model.get_marginal_effects(["G1"], predict_from="cells", n_samples=2)
        assert np.isfinite(table[["estimate", "se", "balance_z"]]).all(axis=None)
    else:
        with pytest.raises(ValueError, match=f"{type(model).__name__} starts a perturbed cell from some control"):
            model.get_marginal_effects(["G1"], predict_from="cells")
    with pytest.raises(ValueError, match="neither 'strata' nor 'cells'"):
        model.get_marginal_effects(["G1"], predict_from="cell")


def test_refusals(model):
    with pytest.raises(ValueError, match="nothing"):
        model.get_marginal_effects(["nothing"])
    with pytest.raises(ValueError, match="No cell carries 'G11'.*Did you mean 'G1"):
        model.get_marginal_effects(["G11"], method="group")
    with pytest.raises(ValueError, match="Did you mean 'cell_type'"):
        model.get_marginal_effects("G1", groupby="cell_typ")
    with pytest.raises(ValueError, match="'robuts' is not one of"):
        model.get_marginal_effects("G1", method="robuts")
    with pytest.raises(ValueError, match="counts"):
        model.get_marginal_effects("G1", output="counts")
    with pytest.raises(ValueError, match="empty"):
        model.get_marginal_effects([])


def test_training_comes_first(case, screen):
    case.set_up(screen)
    with pytest.raises(RuntimeError, match="first"):
        case.model_class(screen, **case.model).get_marginal_effects("G1")
