"""Sparse cells are never made dense as a whole."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_causal import metrics

N_CELLS, N_GENES, DENSITY = 30_000, 1_000, 0.02


@pytest.fixture(scope="module")
def populations():
    """Four populations of the same distribution; dense in float32 each would take 120 MB."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        stored = int(N_CELLS * N_GENES * DENSITY)
        where = rng.integers(0, N_CELLS, stored), rng.integers(0, N_GENES, stored)
        counts = sp.csr_matrix((rng.poisson(1.0, stored) + 1.0, where), shape=(N_CELLS, N_GENES), dtype=np.float32)
        return metrics.log1p_normalize(counts)

    return [draw(seed) for seed in range(4)]


def score(x, y, a, b):
    return metrics.ObservedPopulation(x, a, b).score(y)


def ceiling(x, y, a, b):
    return metrics.noise_ceiling(x, a, b, n_splits=1, n_bootstrap=50, metrics="all", max_cells=500)


CALLS = {
    "score": score,
    "noise_ceiling": ceiling,
    "moments": lambda x, y, a, b: metrics.cell_moments(x),
    "wasserstein": lambda x, y, a, b: metrics.wasserstein_genes(x, y),
    "pair_dispersion": lambda x, y, a, b: metrics.pair_dispersion(x, y),
    "energy": lambda x, y, a, b: metrics.energy_distance(x, y, max_cells=1000),
    "effect_test": lambda x, y, a, b: metrics.effect_test(x, a),
    "fit_pca": lambda x, y, a, b: metrics.fit_pca(x, 10),
}


@pytest.mark.parametrize("name", CALLS)
def test_memory_stays_well_below_one_dense_copy(populations, name):
    tracemalloc.start()
    try:
        CALLS[name](*populations)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    dense = N_CELLS * N_GENES * 4
    assert peak < 0.5 * dense, f"{peak / 2**20:.0f} MB"
