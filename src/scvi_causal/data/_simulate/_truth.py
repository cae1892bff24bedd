"""Expected expression in a simulated population: numerical integrals, no sampling noise.

The log rate of a gene is Gaussian within one (cell type, batch, condition, set of tokens that took effect); counts
given the rate and the library are negative binomial. Both integrals are one-dimensional, so the truth is computed
rather than estimated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.interpolate import CubicSpline

from scvi_causal._constants import NORMALIZED_TOTAL

_N_NORMAL_NODES = 16
_N_LIBRARY_NODES = 10
_TABLE_STEP = 0.2
_LARGE_MEAN = 100.0


def _normal_nodes(n: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes, weights / weights.sum()


@dataclass(frozen=True)
class CountScale:
    """How a rate becomes counts: log-normal library, negative binomial counts.

    Parameters
    ----------
    library_size
        Median library.
    library_sd
        Standard deviation of the log library.
    dispersion
        Inverse dispersion of the negative binomial; infinity is Poisson.
    """

    library_size: float
    library_sd: float
    dispersion: float

    def draw_library(self, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        """(cells,) libraries."""
        return self.library_size * np.exp(self.library_sd * rng.standard_normal(n_cells))

    def draw_counts(self, log_rate: np.ndarray, library: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Counts for ``log_rate`` (cells, genes) and ``library`` (cells,)."""
        mean = np.exp(log_rate) * library[:, None]
        if np.isfinite(self.dispersion):
            mean = rng.gamma(self.dispersion, mean / self.dispersion)
        return rng.poisson(mean)

    def expected_log1p(self, low: float, high: float) -> CubicSpline:
        """Expected log1p of counts per 10,000 as a function of the log rate, between ``low`` and ``high``."""
        grid = np.arange(low - _TABLE_STEP, high + 2 * _TABLE_STEP, _TABLE_STEP)
        value, relative_rate = np.zeros_like(grid), self._gamma_quantiles()
        for node, weight in zip(*_normal_nodes(_N_LIBRARY_NODES), strict=True):
            library = self.library_size * np.exp(self.library_sd * node)
            value += weight * self._expected_log1p_at(np.exp(grid) * library, NORMALIZED_TOTAL / library, relative_rate)
        return CubicSpline(grid, value)

    def _expected_log1p_at(self, mean: np.ndarray, scale: float, relative_rate: np.ndarray) -> np.ndarray:
        result = np.empty_like(mean)
        small = mean <= _LARGE_MEAN
        if small.any():
            largest = int(self._distribution(mean[small].max()).ppf(1 - 1e-10))
            counts = np.arange(1, largest + 1)
            result[small] = self._distribution(mean[small, None]).pmf(counts) @ np.log1p(scale * counts)
        if not small.all():
            rate = mean[~small, None] * relative_rate
            # the Poisson noise around a large rate enters by the second-order term of a Taylor expansion
            curvature = scale**2 * rate / (1 + scale * rate) ** 2
            result[~small] = (np.log1p(scale * rate) - curvature / 2).mean(1)
        return result

    def _distribution(self, mean: np.ndarray | float):
        if not np.isfinite(self.dispersion):
            return stats.poisson(mean)
        return stats.nbinom(self.dispersion, self.dispersion / (self.dispersion + mean))

    def _gamma_quantiles(self, n: int = 2048) -> np.ndarray:
        if not np.isfinite(self.dispersion):
            return np.ones(1)
        return stats.gamma(self.dispersion, scale=1 / self.dispersion).ppf((np.arange(n) + 0.5) / n)


class Expectation:
    """Expectations over the Gaussian log rates of a stratum.

    Parameters
    ----------
    sd
        (genes,) standard deviation of the log rate within a stratum, the same in all of them.
    scale
        The count model.
    low, high
        Range of the means of the log rate for which :meth:`log1p` will be asked.
    """

    def __init__(self, sd: np.ndarray, scale: CountScale, low: float, high: float) -> None:
        nodes, self._weights = _normal_nodes(_N_NORMAL_NODES)
        self._deviation = np.asarray(sd)[:, None] * nodes
        self._half_variance = np.asarray(sd) ** 2 / 2
        reach = float(np.max(sd)) * nodes.max()
        self._table = scale.expected_log1p(low - reach, high + reach)

    def rate(self, mean: np.ndarray) -> np.ndarray:
        """(..., genes) expected rate for the means of the log rate."""
        return np.exp(mean + self._half_variance)

    def log1p(self, mean: np.ndarray) -> np.ndarray:
        """(..., genes) expected log1p of counts per 10,000 for the means of the log rate."""
        return self._table(mean[..., None] + self._deviation) @ self._weights
