"""Energy distance, MMD and PCA against closed forms and a plain computation."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from scvi_causal.metrics import energy_distance, fit_pca, median_bandwidth, mmd_squared


def plain_energy(x, y, unbiased):
    n, m = len(x), len(y)
    within_x = cdist(x, x).sum() / (n * (n - 1) if unbiased else n * n)
    within_y = cdist(y, y).sum() / (m * (m - 1) if unbiased else m * m)
    return 2 * cdist(x, y).mean() - within_x - within_y


def plain_mmd(x, y, h, unbiased):
    k = lambda a, b: np.exp(-cdist(a, b, "sqeuclidean") / h)
    kx, ky = k(x, x), k(y, y)
    if unbiased:
        n, m = len(x), len(y)
        return (kx.sum() - n) / (n * (n - 1)) + (ky.sum() - m) / (m * (m - 1)) - 2 * k(x, y).mean()
    return kx.mean() + ky.mean() - 2 * k(x, y).mean()


@pytest.fixture
def populations():
    # more rows than one block of 1,024, so that off-diagonal blocks are counted
    rng = np.random.default_rng(0)
    return rng.poisson(0.7, (1100, 6)).astype(np.float32), rng.poisson(1.0, (1030, 6)).astype(np.float32)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_blocks_equal_the_plain_computation(populations, form, unbiased):
    x, y = populations
    got = energy_distance(form(x), form(y), unbiased=unbiased)
    assert got == pytest.approx(plain_energy(x, y, unbiased), abs=1e-9)
    got = mmd_squared(form(x), form(y), bandwidths=3.0, unbiased=unbiased)
    assert got == pytest.approx(plain_mmd(x, y, 3.0, unbiased), abs=1e-9)


def test_point_masses():
    x, y = np.zeros((3, 4)), np.full((2, 4), 1.5)
    assert energy_distance(x, y) == pytest.approx(2 * 3.0)  # |x - y| = 1.5 * sqrt(4)
    assert mmd_squared(x, y, bandwidths=9.0) == pytest.approx(2 - 2 * np.exp(-1))


def test_normal_mean_shift_in_one_dimension():
    # E|N(d, 2)| has the closed form below, so does the energy distance of N(0, 1) and N(d, 1)
    from scipy.stats import norm

    d, sd = 1.0, np.sqrt(2)
    folded = lambda mu: sd * np.sqrt(2 / np.pi) * np.exp(-(mu**2) / 4) + mu * (1 - 2 * norm.cdf(-mu / sd))
    rng = np.random.default_rng(1)
    got = energy_distance(rng.normal(size=(3000, 1)), rng.normal(d, 1, size=(3000, 1)))
    assert got == pytest.approx(2 * folded(d) - 2 * folded(0.0), abs=0.03)


def test_unbiased_forms_do_not_depend_on_the_number_of_cells():
    rng = np.random.default_rng(2)
    for function in (energy_distance, lambda x, y, **k: mmd_squared(x, y, bandwidths=10.0, **k)):
        same = [(rng.normal(size=(12, 5)), rng.normal(size=(12, 5))) for _ in range(400)]
        unbiased = np.array([function(x, y) for x, y in same])
        biased = np.array([function(x, y, unbiased=False) for x, y in same])
        assert abs(unbiased.mean()) < 4 * unbiased.std() / 20
        assert biased.mean() > 10 * biased.std() / 20
        assert (biased >= 0).all()
        assert (unbiased < 0).any()


def test_identical_populations_and_single_cells():
    x = np.random.default_rng(3).normal(size=(40, 3)) + 1000  # far from the origin: Gram forms lose digits here
    assert energy_distance(x, x, unbiased=False) == pytest.approx(0, abs=1e-4)
    assert mmd_squared(x, x, unbiased=False) == pytest.approx(0, abs=1e-6)
    assert np.isnan(energy_distance(x[:1], x))
    assert np.isnan(mmd_squared(x, x[:1]))
    assert energy_distance(x[:1], x[1:2], unbiased=False) == pytest.approx(2 * np.linalg.norm(x[0] - x[1]), abs=1e-4)
    assert mmd_squared(np.ones((4, 2)), np.ones((4, 2))) == 0  # no spread: the bandwidth must not become zero


def test_max_cells_is_seeded_and_bad_input_is_refused(populations):
    x, y = populations
    assert energy_distance(x, y, max_cells=100, seed=1) == energy_distance(x, y, max_cells=100, seed=1)
    assert energy_distance(x, y, max_cells=100, seed=1) != energy_distance(x, y, max_cells=100, seed=2)
    assert energy_distance(x, y, max_cells=600) == pytest.approx(energy_distance(x, y), abs=0.02)
    with pytest.raises(ValueError, match="observed: 6, predicted: 5"):
        energy_distance(x, y[:, :5])
    with pytest.raises(ValueError, match="no cells"):
        energy_distance(x, y[:0])
    with pytest.raises(ValueError, match="positive"):
        mmd_squared(x, y, bandwidths=[1.0, 0.0])


def test_median_bandwidth():
    assert median_bandwidth(np.array([[0.0], [1.0], [3.0]])) == 4.0  # squared distances 1, 4, 9
    assert median_bandwidth(np.array([[0.0]] * 9 + [[10.0]])) == pytest.approx(20.0)  # median 0: the mean, 9 * 100 / 45
    assert median_bandwidth(np.zeros((5, 2))) == 1.0


def test_pca_of_sparse_cells_equals_dense_and_keeps_distances(populations):
    x, y = populations
    dense, sparse = fit_pca(x, 3), fit_pca(sp.csr_matrix(x), 3)
    np.testing.assert_allclose(np.abs(dense.transform(x)), np.abs(sparse.transform(sp.csr_matrix(x))), atol=1e-4)
    full = fit_pca(x, 99)
    assert full.n_components_ == 5
    # a constant gene carries no distance, so the five components hold all of it: a rotation changes nothing
    x, y = (np.where(np.arange(6) == 2, 3.0, population) for population in (x, y))
    full = fit_pca(x, 99)
    assert energy_distance(full.transform(x), full.transform(y)) == pytest.approx(energy_distance(x, y), abs=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        fit_pca(x[:1])
