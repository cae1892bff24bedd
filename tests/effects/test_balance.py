"""The balance test: what it tests, when it rejects, and what it is a warning of."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scvi_causal.effects import balance_test, estimate_effects


def test_it_is_welchs_test_of_the_values(toy):
    table = balance_test(toy.y, toy.treatment, "A", names=list("abcde"))
    a = toy.treatment == "A"
    welch = stats.ttest_ind(toy.y[a], toy.y[~a], equal_var=False)
    np.testing.assert_allclose(table["z"], welch.statistic, rtol=1e-9)
    np.testing.assert_allclose(table["pvalue"], welch.pvalue, rtol=1e-6)
    np.testing.assert_allclose(table["difference"], toy.y[a].mean(0) - toy.y[~a].mean(0), rtol=1e-9)
    np.testing.assert_allclose(table["padj"], stats.false_discovery_control(welch.pvalue), rtol=1e-6)
    assert table["feature"].tolist() == list("abcde")
    assert (table["n_perturbed"] + table["n_others"] == 300).all()


def test_groups_storage_and_clusters(toy):
    table = balance_test(sparse.csr_matrix(toy.y), toy.treatment, group=toy.group)
    pd.testing.assert_frame_equal(table, balance_test(toy.y, toy.treatment, group=toy.group), rtol=1e-9)
    assert len(table) == 2 * 3 * 5
    here = table[(table["group"] == "z") & (table["perturbation"] == "B")]
    z = toy.rows("z")
    alone = balance_test(toy.y[z], toy.treatment[z], "B")
    np.testing.assert_allclose(here["z"], alone["z"], rtol=1e-9)
    clustered = balance_test(toy.y, toy.treatment, "A", cluster=np.arange(300) % 9)
    assert clustered["pvalue"].between(0, 1).all()
    assert balance_test(toy.y, toy.treatment, "A", cluster=np.arange(300) % 2)["z"].isna().all()


def test_it_is_the_correction_of_the_robust_estimator(toy):
    """balance_z of a mean is minus this z; of a contrast it is the shift from group mean to robust, in standard errors."""
    mean = estimate_effects(toy.y, toy.treatment, toy.predicted, "A", contrast=None)
    np.testing.assert_allclose(mean["balance_z"], -balance_test(toy.predicted["A"], toy.treatment, "A")["z"], rtol=1e-8)
    both = estimate_effects(toy.y, toy.treatment, toy.predicted, "A", method=["group", "robust"])
    group, robust = (both[both["method"] == name].reset_index() for name in ("group", "robust"))
    assert (np.sign(robust["estimate"] - group["estimate"]) == np.sign(robust["balance_z"])).all()


def test_rejects_at_its_level_under_the_null():
    rng = np.random.default_rng(0)
    values, treated = rng.normal(size=(600, 4000)) ** 2, rng.random(600) < 0.15
    p = balance_test(values, treated, "True")["pvalue"]
    assert 0.04 < (p < 0.05).mean() < 0.06


def screen(rng, n_genes=200, n=600, share=0.15):
    """The reconstruction design: predictions know the outcome of the treated cells, and are one too high elsewhere."""
    treated = rng.random(n) < share
    z = rng.normal(size=(n, n_genes))
    y = 2 + 1.5 * z + rng.normal(0, 0.5, z.shape)
    leaky = np.where(treated[:, None], y, 2 + 1.5 * z + 1.0)
    shifted = 2 + 1.5 * z + 0.7 * treated[:, None]
    return y, np.where(treated, "A", "other"), {"leaky": leaky, "shifted": shifted, "balanced": -3 + 0.5 * z}


def test_a_leaking_encoder_is_flagged_and_biased():
    y, treatment, predicted = screen(np.random.default_rng(1))
    expected = {"leaky": 0.85, "shifted": -0.6}
    for name, bias in expected.items():
        table = estimate_effects(y, treatment, {"A": predicted[name]}, "A", contrast=None)
        assert table["flag"].str.contains("unbalanced").mean() > (0.99 if name == "leaky" else 0.9)
        assert (table["flag"].str.contains("reconstructed") == (name == "leaky")).all()
        assert table["estimate"].mean() - 2 == pytest.approx(bias, abs=0.05)
    table = estimate_effects(y, treatment, {"A": predicted["balanced"]}, "A", contrast=None, method=["robust", "group"])
    assert (table["flag"] == "unbalanced").mean() < 0.02
    assert table["estimate"].mean() == pytest.approx(2, abs=0.05)
    # the group mean does not use the predictions, so they cannot spoil it
    both = estimate_effects(y, treatment, {"A": predicted["leaky"]}, "A", contrast=None, method="group")
    assert (both["flag"] == "").all()


def test_equal_leaks_in_both_arms_cancel():
    """What both predictions get wrong in the same way does not bias their difference, and is not flagged."""
    rng = np.random.default_rng(2)
    treatment = rng.choice(["control", "A"], 2000)
    y = rng.normal(size=(2000, 50))
    shift = 0.8 * (treatment == "A")[:, None]
    predicted = {name: rng.normal(size=y.shape) + shift for name in ("control", "A")}
    # A's predictions are 0.8 too high among its own cells, control's as much too low among its own
    table = estimate_effects(y, treatment, predicted, "A")
    assert (table["flag"] == "unbalanced").all()
    predicted = {"A": rng.normal(size=y.shape) + shift, "control": rng.normal(size=y.shape) - shift}
    table = estimate_effects(y, treatment, predicted, "A")
    assert (table["flag"] == "").mean() > 0.9
    assert abs(table["estimate"].mean()) < 0.02


def test_predictions_that_are_the_outcomes_are_marked_in_either_arm_and_by_noise_alone_none():
    """Balanced, so that no balance test can see it: nothing is left that would correct the model."""
    rng = np.random.default_rng(3)
    treatment = rng.choice(["control", "A"], 400)
    state = rng.normal(size=(400, 40))
    y = state + rng.normal(0, 0.3, state.shape)  # a known state explains 92 %
    nothing = np.zeros_like(y)
    ask = lambda f, h, **kwargs: estimate_effects(
        y, treatment, {"A": f, "control": h}, method=["robust", "group"], **kwargs
    )
    for f, h in ((y, nothing), (nothing, y), (0.3 * y + 2, nothing)):
        table = ask(f, h)
        assert table.loc[table["method"] == "robust", "flag"].str.contains("reconstructed").all()
        assert (table.loc[table["method"] == "group", "flag"] == "").all()
    assert (ask(state, state)["flag"] == "").mean() > 0.95
    assert (ask(nothing, nothing)["flag"] == "").all()
    # with a handful of cells a high correlation is chance
    few = np.r_[np.flatnonzero(treatment == "A")[:4], np.flatnonzero(treatment == "control")]
    assert not ask(y, nothing, rows=few)["flag"].str.contains("reconstructed").any()
