"""Coverage and probability integral transforms against closed forms and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from scvi_causal.metrics import coverage_of_cells, interval_coverage, pit_values


def plain_coverage(observed, predicted, level):
    """Expected share inside, one value at a time: the part of [a, a + b + 1] / (m + 1) inside the central interval."""
    m, lower, upper = len(predicted), (1 - level) / 2, (1 + level) / 2
    inside = []
    for x, draws in zip(observed.T, predicted.T, strict=True):
        for value in x:
            a, b = (draws < value).sum() / (m + 1), ((draws <= value).sum() + 1) / (m + 1)
            inside.append(max(0.0, min(b, upper) - max(a, lower)) / (b - a))
    return np.mean(inside)


@pytest.fixture
def populations():
    rng = np.random.default_rng(0)
    rate = np.array([0.02, 0.3, 1.0, 4.0, 30.0])
    counts = [np.log1p(rng.poisson(rate, (n, 5))).astype(np.float32) for n in (70, 53)]
    return [np.hstack([x, rng.normal(size=(len(x), 2)).astype(np.float32)]) for x in counts]


def test_share_of_intervals_that_hold_the_truth():
    assert interval_coverage([1.0, 2.0, 3.0, 4.0], 2.0, [3.0, 2.0, 9.0, 3.9]) == 0.5  # ends belong to the interval
    assert interval_coverage(np.ones((3, 2)), np.zeros((3, 2)), np.full((3, 2), np.inf)) == 1
    assert np.isnan(interval_coverage([], [], []))
    normal = np.random.default_rng(0).normal(size=20_000)
    assert interval_coverage(normal, *stats.norm.interval(0.8)) == pytest.approx(0.8, abs=0.01)
    with pytest.raises(ValueError, match="1 of 2 intervals have a lower end above"):
        interval_coverage([1.0, 1.0], [0.0, 2.0], [3.0, 1.0])
    with pytest.raises(ValueError, match="truth: 1 of 2 values are NaN"):
        interval_coverage([1.0, np.nan], 0.0, 3.0)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.97])
def test_coverage_is_that_of_a_plain_loop(populations, form, level, monkeypatch):
    from scvi_causal.metrics import _ranks

    monkeypatch.setattr(_ranks, "_BLOCK", 300)  # two genes at a time
    observed, predicted = populations
    got = coverage_of_cells(form(observed), form(predicted), level)
    expected = plain_coverage(observed, predicted, level) if level < 0.97 else np.nan  # 53 draws: 65.7 are needed
    assert got == pytest.approx(expected, nan_ok=True)
    got = coverage_of_cells(form(predicted), form(observed), level)
    assert got == pytest.approx(plain_coverage(predicted, observed, level))


@pytest.mark.parametrize("n_draws", [19, 20, 38, 39, 40])
def test_coverage_where_the_bound_falls_on_a_draw(populations, n_draws):
    observed, predicted = populations
    assert coverage_of_cells(observed, predicted[:n_draws]) == pytest.approx(
        plain_coverage(observed, predicted[:n_draws], 0.9)
    )


def test_coverage_is_the_share_of_the_transforms(populations):
    observed, predicted = populations
    shares = []
    for seed in range(200):
        u = pit_values(observed, predicted, seed)
        shares.append(((u >= 0.05) & (u <= 0.95)).mean())
    assert np.mean(shares) == pytest.approx(coverage_of_cells(observed, predicted), abs=4 * np.std(shares) / 200**0.5)


def test_transforms_are_uniform_for_the_same_law_with_ties_and_few_draws():
    rng = np.random.default_rng(1)
    u = np.concatenate([pit_values(*rng.poisson(0.4, (2, 8, 30)), seed) for seed in range(200)]).ravel()
    # 8 draws per gene make the transforms of a gene dependent: compare with that spread, not with the one of a KS table
    assert np.histogram(u, 10, (0, 1))[0] / u.size == pytest.approx(np.full(10, 0.1), abs=0.01)
    wide = np.histogram(pit_values(rng.normal(size=(3000, 1)), rng.normal(0, 3, (3000, 1))), 5, (0, 1))[0]
    narrow = np.histogram(pit_values(rng.normal(size=(3000, 1)), rng.normal(0, 0.3, (3000, 1))), 5, (0, 1))[0]
    assert wide[2] > 2 * wide[0]
    assert narrow[0] > 2 * narrow[2]


def test_transforms_of_single_values():
    assert 0.8 <= pit_values(np.array([[9.0]]), np.arange(4.0)[:, None])[0, 0] <= 1  # above all four draws
    u = pit_values(np.zeros((300, 1)), np.zeros((9, 1)))[:, 0]
    assert stats.kstest(u, "uniform").pvalue > 0.01  # all tied: nothing is known
    np.testing.assert_array_equal(pit_values(np.eye(3), np.eye(5, 3), 4), pit_values(np.eye(3), np.eye(5, 3), 4))
    assert pit_values(np.zeros((50, 2)), np.zeros((40, 2)), max_cells=7).shape == (7, 2)


def test_coverage_of_normal_populations_has_a_closed_form():
    rng = np.random.default_rng(2)
    real = rng.normal(size=(4000, 3))
    for sd, shift in ((1.0, 0.0), (0.5, 0.0), (2.0, 0.0), (1.0, 1.0)):
        lower, upper = stats.norm.interval(0.9, shift, sd)
        expected = stats.norm.cdf(upper) - stats.norm.cdf(lower)
        got = coverage_of_cells(real, rng.normal(shift, sd, (4000, 3)))
        assert got == pytest.approx(expected, abs=0.015)


def test_degenerate_populations(populations):
    observed, predicted = populations
    # expected values have no spread: what is not tied with them is outside
    constant = np.tile(observed.mean(0), (60, 1))
    assert coverage_of_cells(observed[:, 5:], constant[:, 5:]) == pytest.approx(0)
    # silent on both sides: nothing to be wrong about
    assert coverage_of_cells(np.zeros((30, 2)), np.zeros((40, 2))) == pytest.approx(0.9)
    assert coverage_of_cells(np.ones((30, 2)), np.zeros((40, 2))) == pytest.approx(0)
    assert coverage_of_cells(observed, observed) > 0.9  # the same cells: each is at its own rank
    assert np.isfinite(coverage_of_cells(observed[:1], predicted))
    assert np.isnan(coverage_of_cells(observed, predicted[:18]))
    assert np.isnan(coverage_of_cells(observed, predicted[:1]))
    assert np.isnan(coverage_of_cells(observed, predicted, genes=np.zeros(7, bool)))
    unsigned = np.random.default_rng(0).integers(0, 9, (40, 2)).astype(np.uint8)
    assert coverage_of_cells(unsigned, unsigned) == pytest.approx(plain_coverage(unsigned, unsigned, 0.9))


def test_genes_and_cells_can_be_chosen(populations):
    observed, predicted = populations
    genes = np.array([1, 6])
    expected = coverage_of_cells(observed[:, genes], predicted[:, genes])
    assert coverage_of_cells(observed, predicted, genes=genes) == expected
    assert coverage_of_cells(sp.csr_matrix(observed), predicted, genes=genes) == pytest.approx(expected)
    some = coverage_of_cells(observed, predicted, max_cells=30, seed=1)
    assert some == coverage_of_cells(observed, predicted, max_cells=30, seed=1)
    assert some != coverage_of_cells(observed, predicted, max_cells=30, seed=2)


@pytest.mark.parametrize("function", [coverage_of_cells, pit_values])
def test_input_is_left_alone_and_bad_input_refused(populations, function):
    observed, predicted = populations
    before = predicted.copy()
    function(observed, predicted)
    np.testing.assert_array_equal(predicted, before)
    with pytest.raises(ValueError, match="observed: 7, predicted: 6"):
        function(observed, predicted[:, 1:])
    with pytest.raises(ValueError, match="predicted: no cells"):
        function(observed, predicted[:0])
    predicted[3, 2] = np.nan
    with pytest.raises(ValueError, match="predicted: 1 genes hold NaN"):
        function(observed, predicted)


def test_level_is_checked():
    with pytest.raises(ValueError, match="between 0 and 1, got 90"):
        coverage_of_cells(np.eye(3), np.eye(3), 90)
