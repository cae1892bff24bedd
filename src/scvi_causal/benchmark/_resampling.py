"""The statistics of tables: bootstrap over perturbations, and false discovery rates."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import stats


def bootstrap_means(values: np.ndarray, clusters: np.ndarray, n_boot: int = 10_000, seed: int = 0) -> np.ndarray:
    """Means of resampled rows; rows of one cluster are drawn together.

    Parameters
    ----------
    values
        (rows,) or (rows, columns) without NaN. The columns of a row stay together, so that ratios of means can be formed.
    clusters
        (rows,) label of the cluster of each row.
    n_boot
        Number of resamples.
    seed
        Of the resamples.

    Returns
    -------
    (n_boot,) or (n_boot, columns) means over the rows of the drawn clusters, each row with the same weight.
    """
    values = np.asarray(values, dtype=float)
    _, codes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    n_clusters = int(codes.max()) + 1
    sums = np.zeros((n_clusters, *values.shape[1:]))
    np.add.at(sums, codes, values)
    drawn = _drawn(n_clusters, n_boot, seed)
    sizes = drawn @ np.bincount(codes)
    means = drawn @ sums
    return means / (sizes if values.ndim == 1 else sizes[:, None])


@lru_cache(maxsize=4)
def _drawn(n_clusters: int, n_boot: int, seed: int) -> np.ndarray:
    """(n_boot, n_clusters) how often each cluster is drawn; the same for all models and metrics of a table."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_boot).astype(np.float32)
    drawn.flags.writeable = False
    return drawn


def interval(means: np.ndarray, n_clusters: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap means, widened for few clusters.

    A percentile interval of n values is too narrow by sqrt((n - 1) / n) and by using the normal in place of Student's t.
    The quantiles taken here are those that make up for both (Hesterberg 2015, the "expanded percentile" interval). Not
    defined for one cluster.
    """
    if n_clusters < 2:
        return np.nan, np.nan
    t = stats.t.ppf((1 - level) / 2, n_clusters - 1)
    tail = stats.norm.cdf(t * np.sqrt(n_clusters / (n_clusters - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def benjamini_hochberg(pvalues: np.ndarray) -> np.ndarray:
    """False discovery rate of each test (Benjamini and Hochberg); NaN (not tested) stay NaN and do not count."""
    p = np.asarray(pvalues, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.isfinite(p)
    if tested.any():
        adjusted[tested] = stats.false_discovery_control(p[tested], method="bh")
    return adjusted
