"""Errors of the mean in which genes that change count, and the many that do not count little."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._de import welch_t
from ._moments import cell_moments, effects_of, profiles_of
from ._profiles import CONSTANT

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def de_weights(observed, control_reference) -> np.ndarray:
    r"""Weight of each gene: its absolute Welch t between perturbed and control cells, summing to 1.

    .. math:: w_g \propto |b_g - c_g| \,/\, \sqrt{s_g^2 / n + s_{c,g}^2 / n_c}

    Made from the observed cells alone, so that every prediction is weighed alike. Genes that do not respond keep a small
    weight (the expected :math:`|t|` under no effect is about 0.8).

    Parameters
    ----------
    observed
        (cells, genes) perturbed cells, or their :class:`Moments`; at least two cells.
    control_reference
        (cells, genes) control cells that no prediction used, or their Moments; at least two.

    Returns
    -------
    (genes,) float64. A gene without variance on both sides weighs nothing where its means are equal, and as much as the
    heaviest other gene where they differ. All NaN where no gene differs at all, or a population has a single cell: there is
    nothing to weigh by, and the weighted metrics are NaN.

    References
    ----------
    Miller et al., bioRxiv 2025.10.20.683304 (t of perturbation against the rest; here against independent controls).

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import de_weights
    >>> observed = np.array([[1.0, 1.0], [3.0, 3.0]])
    >>> de_weights(observed, np.array([[0.0, 1.0], [2.0, 3.0]]))
    array([1., 0.])
    """
    t, _ = welch_t(cell_moments(observed, "observed"), cell_moments(control_reference, "control_reference"))
    size = np.abs(t)
    finite = size[np.isfinite(size)]
    size = np.minimum(size, finite.max() if finite.size and finite.max() > 0 else 1.0)
    total = size.sum()
    return size / total if total > 0 else np.full(size.size, np.nan)


def r2_weighted(observed, predicted, weights: ArrayLike, control_source_mean=None, control_reference=None) -> float:
    r"""Coefficient of determination over genes in which each gene counts by its weight.

    .. math:: R^2_w = 1 - \sum_g w_g (\hat b_g - b_g)^2 / \sum_g w_g (b_g - \bar b_w)^2,\quad
        \bar b_w = \sum_g w_g b_g / \sum_g w_g

    Range (-inf, 1], 1 is best. With controls it is computed on effects, :math:`\hat b - c^A` and :math:`b - c^B` in the place
    of the profiles: the weighted :math:`R^2_\Delta` of Miller et al., which control cells do not explain. Without, baseline
    expression is explained too, as in :func:`r2_score_genes`. Lowered by sampling noise, less than the plain form, since
    genes that are only noise have little weight.

    Parameters
    ----------
    observed, predicted
        Populations or mean profiles.
    weights
        (genes,) not negative, such as those of :func:`de_weights`.
    control_source_mean
        Controls that the prediction started from (half A). ``None`` compares profiles rather than effects.
    control_reference
        Independent controls (half B); ``None`` shares half A.

    Returns
    -------
    float; NaN where the observation is constant over the genes that have a weight, or no gene has one.

    Raises
    ------
    ValueError
        If a weight is negative, or only some are NaN.

    References
    ----------
    Miller et al., *Deep learning-based genetic perturbation models do outperform uninformative baselines on well-calibrated
    metrics*, bioRxiv 2025.10.20.683304.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import r2_weighted
    >>> r2_weighted(np.array([0.0, 2.0, 9.0]), np.array([1.0, 2.0, -9.0]), [1.0, 1.0, 0.0])
    0.5
    """
    if control_source_mean is None:
        truth, guess = profiles_of(observed=observed, predicted=predicted)
    else:
        guess, truth = effects_of(observed, predicted, control_source_mean, control_reference)
    weights = _check_weights(weights, truth.size)
    if not weights.sum() > 0:
        return float("nan")
    weights = weights / weights.sum()
    variance = weights @ (truth - weights @ truth) ** 2
    return float(1.0 - weights @ (guess - truth) ** 2 / variance) if variance > CONSTANT**2 else float("nan")


def mse_weighted(observed, predicted, weights: ArrayLike) -> float:
    r"""Squared error of the mean profile in which each gene counts by its weight (WMSE).

    .. math:: \sum_g w_g (\hat b_g - b_g)^2 / \sum_g w_g

    Range [0, inf), 0 is best. Biased upwards by the sampling noise of both means, like :func:`mse`.

    Parameters
    ----------
    observed, predicted
        Populations or mean profiles.
    weights
        (genes,) not negative, such as those of :func:`de_weights`; their sum does not matter.

    Returns
    -------
    float; NaN where no gene has a weight.

    Raises
    ------
    ValueError
        If a weight is negative, or only some are NaN.

    References
    ----------
    Miller et al., bioRxiv 2025.10.20.683304.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import mse_weighted
    >>> mse_weighted(np.array([0.0, 2.0]), np.array([1.0, 9.0]), [1.0, 0.0])
    1.0
    """
    truth, guess = profiles_of(observed=observed, predicted=predicted)
    weights = _check_weights(weights, truth.size)
    total = weights.sum()
    return float(weights @ (guess - truth) ** 2 / total) if total > 0 else float("nan")


def _check_weights(weights: ArrayLike, n_genes: int) -> np.ndarray:
    """(genes,) weights; all zero where all are NaN, which says that there is nothing to weigh by."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n_genes,):
        raise ValueError(f"weights: expected one per gene, ({n_genes},), got an array of shape {weights.shape}.")
    if np.isnan(weights).all():
        return np.zeros(n_genes)
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if bad.size:
        raise ValueError(
            f"weights: {bad.size} of {n_genes} are negative or not finite (first at gene index {bad[0]}: "
            f"{weights[bad[0]]}). Give weights that are not negative, such as those of de_weights."
        )
    return weights
