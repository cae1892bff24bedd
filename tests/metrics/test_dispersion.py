"""Do predicted genes go together as the real ones do? Closed forms, numpy, and degenerate populations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_causal.metrics import pair_dispersion, variance_ratio


@pytest.fixture
def cells():
    """Counts of twelve genes that two programmes move together."""
    rng = np.random.default_rng(0)
    programmes = np.exp(rng.normal(0, 0.6, (400, 2)) @ rng.normal(0, 1, (2, 12)))
    return np.log1p(rng.poisson(2 * programmes)).astype(np.float32)


def by_numpy(x, y):
    pairs = np.triu_indices(x.shape[1], 1)
    r, s = (np.corrcoef(z.astype(float), rowvar=False)[pairs] for z in (x, y))
    c, d = (np.cov(z.astype(float), rowvar=False)[pairs] for z in (x, y))
    return np.corrcoef(r, s)[0, 1], (c * d).sum() / (c * c).sum()


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_equals_numpy(cells, form):
    observed, predicted = cells[:250], cells[250:]
    expected = by_numpy(observed, predicted)
    assert pair_dispersion(form(observed), form(predicted)) == pytest.approx(expected)
    genes = np.array([7, 2, 0, 9])
    expected = by_numpy(observed[:, genes], predicted[:, genes])
    assert pair_dispersion(form(observed), form(predicted), genes) == pytest.approx(expected)
    # the genes that vary most among the observed cells, whatever the prediction
    most = np.argsort(-observed.var(0))[:5]
    predicted = predicted * np.arange(1, 13, dtype=np.float32)
    chosen = pair_dispersion(form(observed), form(predicted), n_genes=5)
    assert chosen == pytest.approx(by_numpy(observed[:, most], predicted[:, most]), rel=1e-5)


def test_scaled_copies_and_independent_genes(cells):
    assert pair_dispersion(cells, cells) == pytest.approx((1, 1))
    assert pair_dispersion(cells, 3 * cells + 2) == pytest.approx((1, 9), rel=1e-5)
    assert pair_dispersion(cells, cells.max() - cells) == pytest.approx((1, 1), rel=1e-5)
    rng = np.random.default_rng(1)
    shuffled = np.column_stack([rng.permutation(column) for column in cells.T])
    correlation, slope = pair_dispersion(cells, shuffled)
    assert abs(correlation) < 0.3
    assert abs(slope) < 0.1
    # which the variances of single genes do not show
    np.testing.assert_allclose(variance_ratio(cells, shuffled), 1, rtol=1e-5)
    one_sign = cells.copy()
    one_sign[:, ::2] *= -1
    assert pair_dispersion(cells, one_sign)[0] < 0.5


def test_noise_lowers_both_numbers():
    rng = np.random.default_rng(2)
    factor = np.linalg.cholesky(0.8 * np.eye(6) + 0.2 + 0.3 * np.diag([1, 0, 1, 0, 1, 0]))
    draw = lambda n: rng.normal(size=(n, 6)) @ factor.T
    few, many = (np.mean([pair_dispersion(draw(n), draw(n)) for _ in range(150)], axis=0) for n in (25, 2000))
    assert (few < many - 0.1).all()
    assert many[1] == pytest.approx(1, abs=0.05)


def test_degenerate_populations(cells):
    constant = np.tile(cells[0], (30, 1))
    assert pair_dispersion(cells, constant) == pytest.approx((0, 0))
    assert np.isnan(pair_dispersion(constant, cells)).all()
    assert np.isnan(pair_dispersion(cells, cells[:2])).all()
    assert np.isnan(pair_dispersion(cells[:2], cells)).all()
    flat = cells.copy()
    flat[:, 2:] = 1  # two genes make one pair, which correlates with nothing
    assert np.isnan(pair_dispersion(flat, cells)).all()
    flat = cells.copy()
    flat[:, 3] = 1  # a gene that is not seen to vary is left out
    others = np.setdiff1d(np.arange(12), 3)
    assert pair_dispersion(flat, cells) == pytest.approx(pair_dispersion(cells, cells, others))
    with pytest.raises(ValueError, match="observed: 12, predicted: 11"):
        pair_dispersion(cells, cells[:, 1:])
