"""Mean and variance of a population, computed once."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_causal.metrics import Moments, cell_moments


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_moments_are_those_of_numpy(form):
    # more cells than a block, and a gene with a large mean and a small variance
    cells = np.random.default_rng(0).poisson(1.0, (600, 4)).astype(np.float32) + np.array([0, 0, 0, 3000], np.float32)
    got = cell_moments(form(cells))
    np.testing.assert_allclose(got.mean, cells.astype(float).mean(0))
    np.testing.assert_allclose(got.variance, cells.astype(float).var(0, ddof=1))
    np.testing.assert_allclose(got.noise, cells.astype(float).var(0, ddof=1) / 600)
    assert got.n_cells == 600


def test_moments_pass_through_and_a_profile_has_no_noise():
    moments = Moments(np.zeros(2), np.ones(2), 7)
    assert cell_moments(moments) is moments
    profile = cell_moments(np.array([1.0, 2.0]))
    assert profile.noise.tolist() == [0.0, 0.0]


def test_moments_of_few_and_of_bad_cells():
    single = cell_moments(np.array([[1.0, 2.0]]))
    assert np.isnan(single.variance).all()
    assert single.mean.tolist() == [1.0, 2.0]
    assert cell_moments(np.full((5, 2), 0.1, np.float32)).variance == pytest.approx(0, abs=1e-15)
    with pytest.raises(ValueError, match="draws: no cells"):
        cell_moments(np.empty((0, 3)), "draws")
    with pytest.raises(ValueError, match="draws: 1 of 2 genes"):
        cell_moments(np.array([[1.0, np.nan], [1.0, 1.0]]), "draws")


@pytest.mark.parametrize("what", ["moments", "t-test", "wilcoxon", "coverage"])
def test_sparse_cells_are_never_dense_as_a_whole(what, monkeypatch):
    import tracemalloc

    from scvi_causal.metrics import _ranks, coverage_of_cells, differential_expression

    monkeypatch.setattr(_ranks, "_BLOCK", 200_000)
    cells = sp.random(6000, 1000, density=0.01, format="csr", dtype=np.float32, random_state=0)
    controls = cells[:1000]
    run = {
        "moments": lambda: cell_moments(cells),
        "t-test": lambda: differential_expression(cells, controls),
        "wilcoxon": lambda: differential_expression(cells[:, :200], controls[:, :200], method="wilcoxon"),
        "coverage": lambda: coverage_of_cells(cells, controls),
    }[what]
    run()  # what is imported on first use is no memory of the metric
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    dense = 4 * cells.shape[0] * (200 if what == "wilcoxon" else 1000)  # bytes: 24 MB, and 4.8 MB for the slow one
    assert peak < 0.5 * dense, f"{peak / 1e6:.1f} MB"
