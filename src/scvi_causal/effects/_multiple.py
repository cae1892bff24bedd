"""Many genes at once: false discovery rates and bands that hold for all genes together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def adjust_pvalues(pvalue: ArrayLike) -> np.ndarray:
    """p-values adjusted by Benjamini and Hochberg, NaN left out and kept.

    Parameters
    ----------
    pvalue
        p-values of any shape.

    Returns
    -------
    Adjusted p-values of the same shape; calls below q have an expected share of at most q false ones among them.

    See Also
    --------
    scipy.stats.false_discovery_control

    Examples
    --------
    >>> from scvi_causal.effects import adjust_pvalues
    >>> adjust_pvalues([0.01, float("nan"), 0.02, 0.5]).tolist()
    [0.03, nan, 0.03, 0.5]
    """
    pvalue = np.asarray(pvalue, dtype=np.float64)
    known = ~np.isnan(pvalue)
    adjusted = np.full(pvalue.shape, np.nan)
    if known.any():
        adjusted[known] = stats.false_discovery_control(pvalue[known])
    return adjusted


def bootstrap_critical_value(
    influence: np.ndarray, level: float, n_draws: int, rng: np.random.Generator, block: int = 100
) -> float:
    r"""Quantile of the largest :math:`|z|` over genes, by the multiplier bootstrap.

    .. math:: \max_g \Bigl|\sum_j \xi_j \Phi_{jg}\Bigr| \Big/ \sqrt{\textstyle\sum_j \Phi_{jg}^2}, \qquad \xi_j \sim N(0, 1)

    Parameters
    ----------
    influence
        (units, genes) influence values of independent units: cells, or sums over random groups of cells.
    level
        Of the band, such as 0.95.
    n_draws
        Number of draws of the multipliers.
    rng
        Their source.
    block
        Draws at a time.

    Returns
    -------
    float; NaN without a gene that varies.
    """
    size = np.sqrt((influence**2).sum(0))
    unit = influence[:, size > 0] / size[size > 0]
    if not unit.shape[1]:
        return float("nan")
    largest = []
    for start in range(0, n_draws, block):
        draw = rng.standard_normal((min(block, n_draws - start), len(unit))) @ unit
        largest.append(np.abs(draw).max(1))
    return float(np.quantile(np.concatenate(largest), level))


def sidak_critical_value(level: float, n_genes: int, df: np.ndarray) -> np.ndarray:
    """Student-t quantile at which ``n_genes`` independent intervals all hold with probability ``level``; conservative else."""
    single = level ** (1 / max(n_genes, 1))
    return stats.t.isf((1 - single) / 2, df)
