"""Errors weighted by how surely a gene changes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scvi_causal.metrics import cell_moments, de_weights, mse, mse_weighted, r2_score_genes, r2_weighted


@pytest.fixture
def screen():
    rng = np.random.default_rng(0)
    shift = np.array([2.0, -1.0, 0, 0, 0, 0])
    return rng.normal(size=(40, 6)) + shift, rng.normal(size=(60, 6))


def test_weights_are_the_normalised_welch_t(screen):
    t = np.abs(stats.ttest_ind(*screen, equal_var=False).statistic)
    np.testing.assert_allclose(de_weights(*screen), t / t.sum())
    np.testing.assert_allclose(de_weights(*map(cell_moments, screen)), t / t.sum())


def test_weights_of_genes_without_variance(screen):
    observed, control = (x.copy() for x in screen)
    observed[:, 4] = control[:, 4] = 0.1  # equal on both sides: no weight
    observed[:, 5], control[:, 5] = 1.0, 0.0  # surely different: as heavy as the heaviest, not infinitely
    weights = de_weights(observed, control)
    assert weights[4] == 0
    assert weights[5] == weights[0] == weights.max()
    assert weights.sum() == pytest.approx(1)
    assert de_weights(np.ones((3, 2)) * [0, 1], np.zeros((3, 2))).tolist() == [0.0, 1.0]


def test_nothing_to_weigh_by(screen):
    observed, control = screen
    for arrays in ((observed, observed), (observed[:1], control), (np.ones((3, 6)), np.ones((4, 6)))):
        weights = de_weights(*arrays)
        assert np.isnan(weights).all()
        assert np.isnan(r2_weighted(observed, control, weights))
        assert np.isnan(mse_weighted(observed, control, weights))


def test_weighted_errors_are_those_of_sklearn(screen):
    from sklearn.metrics import mean_squared_error, r2_score

    rng = np.random.default_rng(1)
    truth, guess, weights = rng.normal(size=(3, 6)) ** 2
    assert mse_weighted(truth, guess, weights) == pytest.approx(mean_squared_error(truth, guess, sample_weight=weights))
    assert r2_weighted(truth, guess, weights) == pytest.approx(r2_score(truth, guess, sample_weight=weights))
    assert r2_weighted(truth, guess, 7 * weights) == pytest.approx(r2_weighted(truth, guess, weights))
    assert mse_weighted(truth, guess, np.ones(6)) == pytest.approx(mse(truth, guess))
    assert r2_weighted(truth, guess, np.ones(6)) == pytest.approx(r2_score_genes(truth, guess))


def test_effects_take_each_side_its_own_controls():
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(2)
    truth, guess, source, reference, weights = rng.normal(size=(5, 30)) ** 2
    expected = r2_score(truth - reference, guess - source, sample_weight=weights)
    assert r2_weighted(truth, guess, weights, source, reference) == pytest.approx(expected)
    expected = r2_score(truth - source, guess - source, sample_weight=weights)
    assert r2_weighted(truth, guess, weights, source) == pytest.approx(expected)
    # baseline expression explains nothing of an effect
    baseline = 10 * rng.normal(size=30)
    assert r2_weighted(baseline + truth, baseline, weights) > 0.9
    assert r2_weighted(baseline + truth, baseline, weights, baseline) <= 0


def test_degenerate_profiles_and_bad_weights():
    truth, guess = np.full(3, 0.1), np.arange(3.0)
    assert np.isnan(r2_weighted(truth, guess, [0.2, 0.3, 0.1]))
    assert np.isnan(r2_weighted(guess, truth, [0.0, 1.0, 0.0]))  # one gene has no spread
    assert np.isnan(mse_weighted(truth, guess, np.zeros(3)))
    assert r2_weighted(guess, guess, np.ones(3)) == 1
    with pytest.raises(ValueError, match="1 of 3 are negative or not finite .* gene index 1"):
        mse_weighted(truth, guess, [1.0, -1.0, 0.0])
    with pytest.raises(ValueError, match="1 of 3"):
        r2_weighted(truth, guess, [1.0, 0.0, np.nan])
    with pytest.raises(ValueError, match=r"\(3,\), got an array of shape \(2,\)"):
        mse_weighted(truth, guess, [1.0, 1.0])
