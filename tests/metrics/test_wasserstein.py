"""Wasserstein distance of every gene against scipy, POT and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import norm, wasserstein_distance

from scvi_causal.metrics import _distances, wasserstein_genes


def populations(n, m):
    """Counts with ties, of more genes than cells of a block; one gene is constant and one differs in a shift only."""
    rng = np.random.default_rng([n, m])
    x, y = rng.poisson(0.8, (n, 9)).astype(np.float32), rng.poisson(1.1, (m, 9)).astype(np.float32)
    x[:, 3], y[:, 3] = 2, 2
    x[:, 5], y[:, 5] = 1, 4
    return np.log1p(x), np.log1p(y)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (30, 20), (7, 13), (1, 4), (5, 1), (1, 1)])
def test_equals_scipy_gene_by_gene(monkeypatch, form, n, m):
    monkeypatch.setattr(_distances, "_BLOCK_VALUES", 2 * (n + m))  # two genes at a time, the last alone
    x, y = populations(n, m)
    expected = [wasserstein_distance(x[:, g].astype(float), y[:, g].astype(float)) for g in range(9)]
    np.testing.assert_allclose(wasserstein_genes(form(x), form(y)), expected, atol=1e-7)
    np.testing.assert_allclose(
        wasserstein_genes(form(x), form(y), np.array([6, 5])), np.array(expected)[[6, 5]], atol=1e-7
    )


def test_equals_pot():
    ot = pytest.importorskip("ot", reason="POT is in the dependency group test")
    x, y = (z.astype(np.float64) for z in populations(40, 25))
    np.testing.assert_allclose(wasserstein_genes(x, y), ot.wasserstein_1d(x, y, p=1), atol=1e-12)


def test_closed_forms():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    np.testing.assert_allclose(wasserstein_genes(x, x + np.array([0.0, 2.0, -3.0])), [0, 2, 3], atol=1e-12)
    assert wasserstein_genes(x, x[rng.permutation(50)]).max() == 0
    # two normal distributions with the same mean: the difference of the standard deviations times E|z|
    u = (np.arange(4000) + 0.5) / 4000
    z = norm.ppf(u)[:, None]
    assert wasserstein_genes(z, 3 * z)[0] == pytest.approx(2 * np.sqrt(2 / np.pi), abs=2e-3)
    # never less than the difference of the means
    y = rng.gamma(1.0, 1.0, (30, 3))
    assert (wasserstein_genes(x, y) >= np.abs(x.mean(0) - y.mean(0)) - 1e-12).all()
    assert wasserstein_genes(x[:, :0], y[:, :0]).shape == (0,)


def test_noise_falls_with_the_root_of_the_number_of_cells():
    rng = np.random.default_rng(0)
    draw = lambda n: wasserstein_genes(rng.normal(size=(n, 400)), rng.normal(size=(n, 400))).mean()
    assert draw(50) / draw(800) == pytest.approx(4, rel=0.05)


def test_cells_are_drawn_by_seed_and_bad_input_is_refused():
    x, y = populations(60, 50)
    drawn = [wasserstein_genes(x, y, max_cells=20, seed=seed).sum() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match="observed: 9, predicted: 8"):
        wasserstein_genes(x, y[:, 1:])
    with pytest.raises(ValueError, match="no cells"):
        wasserstein_genes(x[:0], y)
