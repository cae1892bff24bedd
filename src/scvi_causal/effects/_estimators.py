"""From the sums of a group to estimates with intervals, one number per gene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from ._influence import slope_of_moments
from ._multiple import bootstrap_critical_value, sidak_critical_value
from ._sums import F, H, Y
from ._variance import (
    FEWEST_CLUSTERS,
    Spread,
    Weights,
    at_least,
    cluster_influence,
    is_rare,
    n_clusters,
    point,
    spread_of_cells,
    spread_of_clusters,
)

if TYPE_CHECKING:
    from ._influence import Method
    from ._sums import Arms, ArmSums
    from ._variance import ClusterVariance

FEW_CELLS = 10
"""Below this, a mean of skewed counts is not normal enough for its interval to be believed."""
_RECONSTRUCTED = (
    0.98  # squared correlation with the outcomes of the same cells; noise alone keeps other predictions below it
)
_EXACT = 1e-9  # relative to the means: a difference below it is rounding


@dataclass(frozen=True)
class Estimate:
    """An effect on every gene; arrays are (genes,)."""

    mean: np.ndarray
    mean_contrast: np.ndarray
    estimate: np.ndarray
    se: np.ndarray
    df: np.ndarray
    statistic: np.ndarray
    pvalue: np.ndarray
    model_only: bool
    critical: np.ndarray
    """What the standard error is multiplied by for a band over all genes; NaN where none was asked for."""


@dataclass(frozen=True)
class Inference:
    """How uncertainty is found.

    Parameters
    ----------
    level
        Of intervals and bands.
    clusters
        Variance formula for clusters; ``None`` if cells are independent.
    n_bootstrap
        Draws for bands, 0 for no bands.
    rng
        Their source.
    """

    level: float
    clusters: ClusterVariance | None
    n_bootstrap: int
    rng: np.random.Generator

    def spread(self, arms: Arms, weights: Weights, offsets: bool = True) -> Spread | None:
        """Variance of an estimate; ``None`` where there are too few cells or clusters for one."""
        compared = [arm for arm in (arms.target, arms.contrast) if arm is not None]
        if min(arm.n_cells for arm in compared) < 2:
            return None
        if self.clusters is None:
            return spread_of_cells(arms, weights, offsets)
        if n_clusters(arms) < FEWEST_CLUSTERS:
            return None
        spread = spread_of_clusters(arms, weights, self.clusters)
        if not weights.outcome:
            return spread
        # clusters without a cell that expresses a gene do not differ, which makes nothing certain
        rare = np.any([is_rare(arm) for arm in compared], axis=0)
        return at_least(spread, spread_of_cells(arms, weights, offsets), rare)


def estimate_arms(arms: Arms, method: Method, inference: Inference) -> Estimate:
    """Effect of the target, or its difference from the contrast.

    Where one of the two was never observed in the group, the difference of the mean predictions stands in, without a standard
    error; with ``"group"``, which knows no predictions, there is nothing.
    """
    n_genes = arms.target.first.shape[2]
    nothing = np.full(n_genes, np.nan)
    overall = arms.predicted_mean
    observed = arms.target.n_cells > 0 and (arms.contrast is None or arms.contrast.n_cells > 0)
    if not observed and method == "group":
        return _without_interval(nothing, nothing, nothing)
    if not observed or method == "mean":
        control = nothing if arms.contrast is None else overall[1]
        return _without_interval(overall[0], control, overall[0] - (0.0 if arms.contrast is None else overall[1]))
    weights = weights_of(arms, method)
    estimate = point(arms, weights)
    mean = arms.target.mean[Y] + weights.target * (overall[0] - arms.target.mean[F])
    contrast = nothing
    if arms.contrast is not None:
        contrast = arms.contrast.mean[Y] + weights.contrast * (overall[1] - arms.contrast.mean[H])
    spread = inference.spread(arms, weights)
    if spread is None:
        return _without_interval(mean, contrast, estimate, model_only=False)
    se, statistic, pvalue = zero_test(estimate, spread, _size(arms))
    critical = _critical(arms, weights, se, spread.df, inference)
    return Estimate(mean, contrast, estimate, se, spread.df, statistic, pvalue, False, critical)


def weights_of(arms: Arms, method: Method) -> Weights:
    """How much of the predictions is used."""
    if method in ("group", "robust"):
        slope = np.full(arms.target.first.shape[2], float(method == "robust"))
        return Weights(1.0, slope, slope)
    control = 0.0 if arms.contrast is None else _slope(arms.contrast, H)
    return Weights(1.0, _slope(arms.target, F), control)


def _slope(arm: ArmSums, prediction: int) -> np.ndarray:
    scatter = arm.scatter
    return slope_of_moments(
        scatter[Y, prediction], scatter[prediction, prediction], arm.second[prediction, prediction], arm.n_cells
    )


def imbalance(arms: Arms, inference: Inference) -> tuple[np.ndarray, np.ndarray]:
    """Return z (or t) and p-value, (genes,) each, of the correction that predictions make, which should be chance alone.

    The correction is how much the mean prediction of all cells differs from that of the cells observed under the target, minus
    the same for the contrast. Predictions that do not depend on what a cell received have none on average.
    """
    n_genes = arms.target.first.shape[2]
    weights = Weights(0.0, np.ones(n_genes), np.ones(n_genes))
    spread = None
    if arms.target.n_cells and (arms.contrast is None or arms.contrast.n_cells):
        spread = inference.spread(arms, weights, offsets=False)
    if spread is None:
        return np.full(n_genes, np.nan), np.full(n_genes, np.nan)
    return zero_test(point(arms, weights), spread, _size(arms))[1:]


def reconstructed(arms: Arms) -> np.ndarray:
    """(genes,) whether predictions of the cells of an arm are their own outcomes, all but.

    Then y - f is zero whatever the model says of all other cells, and nothing is left that could correct it.
    """
    found = np.zeros(arms.target.first.shape[2], dtype=bool)
    for arm, prediction in ((arms.target, F), (arms.contrast, H)):
        if arm is None or arm.n_cells < FEW_CELLS:
            continue
        scatter = arm.scatter
        product = scatter[Y, Y] * scatter[prediction, prediction]
        found |= (product > 0) & (scatter[Y, prediction] ** 2 > _RECONSTRUCTED * product)
    return found


def zero_test(estimate: np.ndarray, spread: Spread, size: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return standard error, t statistic and two-sided p-value; without variance 0 and 1, or infinite and 0 if not zero.

    Parameters
    ----------
    estimate, spread
        What is tested.
    size
        (genes,) size of the numbers that the estimate is a difference of: what is tiny beside them is rounding.
    """
    se = np.sqrt(spread.variance)
    se = np.where(se <= _EXACT * size, 0.0, se)
    exact, zero = se == 0, np.abs(estimate) <= _EXACT * size
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(exact, np.where(zero, 0.0, np.copysign(np.inf, estimate)), estimate / se)
    pvalue = np.where(exact, np.where(zero, 1.0, 0.0), 2 * stats.t.sf(np.abs(statistic), spread.df))
    return se, statistic, np.where(np.isnan(se), np.nan, pvalue)


def _size(arms: Arms) -> np.ndarray:
    return sum(np.abs(arm.mean).sum(0) for arm in arms.present)


def _critical(arms: Arms, weights: Weights, se: np.ndarray, df: np.ndarray, inference: Inference) -> np.ndarray:
    """(genes,) critical values of a band over the genes of one group; of the bootstrap, or Šidák's with clusters."""
    if not inference.n_bootstrap:
        return np.full(len(se), np.nan)
    if inference.clusters is not None:
        return sidak_critical_value(inference.level, int((se > 0).sum()), df)
    influence = cluster_influence(arms, weights)  # of random sets of cells
    influence[:, se == 0] = 0.0
    value = bootstrap_critical_value(influence, inference.level, inference.n_bootstrap, inference.rng)
    return stats.t.isf(stats.norm.sf(value), df)


def _without_interval(mean, contrast, estimate, model_only: bool = True) -> Estimate:
    nothing = np.full(len(estimate), np.nan)
    return Estimate(mean, contrast, estimate, nothing, nothing, nothing, nothing, model_only, nothing)
