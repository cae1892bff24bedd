"""Identities of the estimators and of their influence values (parity checks 12 and 14 of the specification)."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_causal.effects import marginal_mean, standard_error

N, GENES = 200, 4


@pytest.fixture
def arm():
    """Outcomes, predictions and treated cells of one group."""
    rng = np.random.default_rng(0)
    y, f = rng.normal(size=(2, N, GENES))
    return y + f, f * [1.0, -2.0, 0.3, 1.0] + 3.0, rng.random(N) < 0.2


def general_form(y, f, treated):
    """Equation 32, with the empirical frequencies of the group in the data and of the treatment in the group."""
    # the group is the first half of twice as many cells
    p, e = 0.5, treated.mean()
    n = 2 * len(y)
    return (f / p + treated[:, None] / (p * e) * (y - f)).sum(0) / n


def test_robust_is_the_group_mean_and_the_imbalance_of_predictions(arm):
    y, f, a = arm
    expected = y[a].mean(0) + f.mean(0) - f[a].mean(0)
    np.testing.assert_allclose(marginal_mean(y, f, a).estimate, expected, rtol=1e-13)
    direct = f.mean(0) + (y - f)[a].mean(0)
    np.testing.assert_allclose(marginal_mean(y, f, a).estimate, direct, rtol=1e-13)


def test_general_form_is_the_robust_mean(arm):
    y, f, a = arm
    np.testing.assert_allclose(marginal_mean(y, f, a).estimate, general_form(y, f, a), rtol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 10.0, -1e4])
def test_constant_predictions_change_nothing(arm, constant):
    y, _, a = arm
    robust = marginal_mean(y, np.full_like(y, constant), a)
    group = marginal_mean(y, None, a, method="group")
    np.testing.assert_allclose(robust.estimate, y[a].mean(0), atol=1e-10)
    np.testing.assert_allclose(robust.influence, group.influence, atol=1e-8)


def test_a_reconstruction_with_the_right_mean_gives_the_group_mean(arm):
    y, f, a = arm
    f = np.where(a[:, None], y, f - f[~a].mean(0) + y[a].mean(0))
    np.testing.assert_allclose(marginal_mean(y, f, a).estimate, y[a].mean(0), atol=1e-13)


def test_a_constant_added_to_predictions_changes_nothing(arm):
    y, f, a = arm
    for method in ("robust", "tuned"):
        one, other = (marginal_mean(y, p, a, method=method) for p in (f, f + 7.0))
        np.testing.assert_allclose(one.estimate, other.estimate, rtol=1e-11)
        np.testing.assert_allclose(one.influence, other.influence, atol=1e-10)


def test_all_treated_is_the_mean(arm):
    y, f, _ = arm
    everyone = np.ones(N, dtype=bool)
    for method in ("group", "robust", "tuned"):
        np.testing.assert_allclose(marginal_mean(y, f, everyone, method=method).estimate, y.mean(0), rtol=1e-12)


@pytest.mark.parametrize("method", ["group", "mean", "robust", "tuned"])
@pytest.mark.parametrize("form", ["hajek", "plug-in"])
def test_influence_values_sum_to_zero(arm, method, form):
    y, f, a = arm
    found = marginal_mean(y, f, a, method=method, form=form)
    np.testing.assert_allclose(found.influence.sum(0), 0.0, atol=1e-9)


def test_forms_agree_where_predictions_are_right_on_average(arm):
    y, f, a = arm
    f = f + (y - f)[a].mean(0)
    one, other = (marginal_mean(y, f, a, form=form).influence for form in ("hajek", "plug-in"))
    np.testing.assert_allclose(one, other, atol=1e-12)
    off = marginal_mean(y, f + 10.0, a, form="plug-in").influence
    assert (standard_error(off) > 3 * standard_error(one)).all()


def test_tuned_is_the_best_multiple(arm):
    y, f, a = arm
    found = marginal_mean(y, f, a, method="tuned")
    slope = np.array([np.polyfit(f[a, g], y[a, g], 1)[0] for g in range(GENES)])
    np.testing.assert_allclose(found.estimate, y[a].mean(0) + slope * (f.mean(0) - f[a].mean(0)), rtol=1e-10)
    # the variance as a function of the multiple is a parabola with its minimum near the slope of the treated cells
    around = [standard_error(marginal_mean(y, b * f, a).influence) for b in (slope - 0.5, slope, slope + 0.5)]
    assert (around[1] < around[0]).all()
    assert (around[1] < around[2]).all()


def test_closed_form_of_the_standard_error():
    rng = np.random.default_rng(1)
    n, share = 40_000, 0.15
    z = rng.normal(size=(n, 1))
    y, a = 2 + 1.5 * z + rng.normal(0, 0.5, (n, 1)), rng.random(n) < share
    pi = a.mean()
    for f, method in ((2 + 1.5 * z, "robust"), (-3 + 0.5 * z, "robust"), (-2 * z, "robust"), (-2 * z, "tuned")):
        se = standard_error(marginal_mean(y, f, a, method=method).influence)[0]
        moments = np.cov(y[a, 0], f[a, 0], bias=True)
        if method == "tuned":
            closed = moments[0, 0] * (1 - (1 - pi) * moments[0, 1] ** 2 / (moments[0, 0] * moments[1, 1]))
        else:
            closed = moments[0, 0] + (1 - pi) * (moments[1, 1] - 2 * moments[0, 1])
        assert se == pytest.approx(np.sqrt(closed / a.sum()), rel=0.01)


def test_standard_error_falls_with_the_root_of_cells(arm):
    y, f, a = arm
    one = standard_error(marginal_mean(y, f, a).influence)
    four = standard_error(marginal_mean(np.tile(y, (4, 1)), np.tile(f, (4, 1)), np.tile(a, 4)).influence)
    np.testing.assert_allclose(four, one / 2, rtol=1e-12)


def test_clusters_of_one_cell_are_cells(arm):
    influence = marginal_mean(*arm).influence
    np.testing.assert_allclose(
        standard_error(influence, np.arange(N)), standard_error(influence) * np.sqrt(N / (N - 1)), rtol=1e-12
    )


def test_copies_of_a_cell_are_one_cluster(arm):
    y, f, a = arm
    copies = marginal_mean(np.repeat(y, 3, 0), np.repeat(f, 3, 0), np.repeat(a, 3))
    once = standard_error(marginal_mean(y, f, a).influence, np.arange(N))
    np.testing.assert_allclose(standard_error(copies.influence, np.repeat(np.arange(N), 3)), once, rtol=1e-12)


def test_refusals(arm):
    y, f, a = arm
    with pytest.raises(ValueError, match="'robsut' is not one of"):
        marginal_mean(y, f, a, method="robsut")
    with pytest.raises(ValueError, match="neither"):
        marginal_mean(y, f, a, form="wald")
    with pytest.raises(ValueError, match="needs predictions"):
        marginal_mean(y, None, a)
    with pytest.raises(ValueError, match="No cell received"):
        marginal_mean(y, f, np.zeros(N, dtype=bool))
    with pytest.raises(ValueError, match="one prediction for each cell"):
        marginal_mean(y, f[:, :2], a)
    with pytest.raises(ValueError, match="expected \\(cells, genes\\)"):
        marginal_mean(y, f, a[:5])
    broken = f.copy()
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 values"):
        marginal_mean(y, broken, a)
    with pytest.raises(ValueError, match="fewer than 3"):
        standard_error(y, a)
    # without a treated cell the predictions are all there is
    only = marginal_mean(y, f, np.zeros(N, dtype=bool), method="mean")
    np.testing.assert_allclose(only.estimate, f.mean(0))
