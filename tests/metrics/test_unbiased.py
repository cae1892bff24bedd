"""Noise-corrected errors: closed forms and degenerate input. What they are for is in test_bias.py."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_causal.metrics import cell_moments, mse, mse_ratio, mse_ratio_unbiased, mse_unbiased


@pytest.fixture
def populations():
    rng = np.random.default_rng(0)
    return [rng.poisson(rate, (n, 5)).astype(np.float32) for rate, n in ((1.0, 30), (1.5, 20), (0.7, 40))]


def noise(x):
    return (x.astype(float).var(0, ddof=1) / len(x)).mean()


def test_both_sampling_variances_are_subtracted(populations):
    observed, predicted, _ = populations
    expected = mse(observed, predicted) - noise(observed) - noise(predicted)
    for form in (np.asarray, sp.csr_matrix, cell_moments):
        assert mse_unbiased(form(observed), form(predicted)) == pytest.approx(expected)
    mask = np.array([0, 1, 1, 0, 0], bool)
    expected = mse_unbiased(observed[:, mask], predicted[:, mask])
    assert mse_unbiased(observed, predicted, mask) == pytest.approx(expected)
    # a profile is not an average of draws
    assert mse_unbiased(observed, predicted.mean(0)) == pytest.approx(mse(observed, predicted) - noise(observed))
    assert mse_unbiased(observed.mean(0), predicted.mean(0)) == pytest.approx(mse(observed, predicted))


def test_the_cap_bounds_what_scattering_earns(populations):
    observed, predicted, _ = populations
    # the mean of these cells is exact by construction, however far apart they lie
    scattered = np.concatenate([predicted + 50, predicted - 50])
    free = mse_unbiased(observed, scattered)
    capped = mse_unbiased(observed, scattered, capped=True)
    assert free < mse(observed, predicted) - 20
    assert capped == pytest.approx(mse(observed, predicted) - 2 * noise(observed), abs=1e-6)
    assert mse_unbiased(observed, scattered.mean(0)) > capped
    # where the prediction has less noise than the observation nothing is cut
    many = np.tile(predicted, (50, 1))
    assert mse_unbiased(observed, many, capped=True) == mse_unbiased(observed, many)


def test_ratio(populations):
    observed, predicted, control = populations
    expected = mse_unbiased(observed, predicted) / mse_unbiased(observed, control)
    assert mse_ratio_unbiased(observed, predicted, control) == pytest.approx(expected)
    moments = [cell_moments(x) for x in populations]
    assert mse_ratio_unbiased(*moments) == pytest.approx(expected)
    # "nothing changes" is 1, with and without the correction
    assert mse_ratio_unbiased(observed, control, control) == pytest.approx(1)
    profiles = [x.mean(0) for x in populations]
    assert mse_ratio_unbiased(*profiles) == pytest.approx(mse_ratio(*profiles))


def test_degenerate_input(populations):
    observed, predicted, control = populations
    # no effect beyond the noise, identical populations
    assert np.isnan(mse_ratio_unbiased(observed, predicted, observed))
    assert mse_unbiased(observed, observed) == pytest.approx(-2 * noise(observed))
    # the noise of one cell is not known
    for arrays in ((observed[:1], predicted), (observed, predicted[:1])):
        assert np.isnan(mse_unbiased(*arrays))
        assert np.isnan(mse_unbiased(*arrays, capped=True))
        assert np.isnan(mse_ratio_unbiased(*arrays, control))
    assert np.isnan(mse_ratio_unbiased(observed, predicted, control[:1]))
    # a constant prediction has no noise of its own
    constant = np.tile(predicted.mean(0), (20, 1))
    assert mse_unbiased(observed, constant) == pytest.approx(mse_unbiased(observed, predicted.mean(0)))
    flat = np.ones((4, 5))
    assert mse_unbiased(flat, flat + 1) == 1
    assert np.isnan(mse_unbiased(observed, predicted, np.zeros(5, bool)))
    with pytest.raises(ValueError, match="observed: 5, predicted: 4"):
        mse_unbiased(observed, predicted[:, 1:])
