"""Are intervals as wide as they should be, and do predicted cells scatter as the real ones do?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._arrays import as_cells, check_same_genes, subsample_cells
from ._ranks import gene_blocks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def interval_coverage(truth: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> float:
    """Share of true values inside their intervals, ends included.

    Range [0, 1]; best is the stated level of the intervals (0.9 for 5 % to 95 %): below it they are too narrow, above it too
    wide. With noisy ``truth`` (the observed mean of few cells) an interval for the true mean covers less than it states.

    Parameters
    ----------
    truth
        What was observed or is known, of any shape.
    lower, upper
        Ends of the intervals, of the same shape (or broadcast to it).

    Returns
    -------
    float; NaN without a single value.

    Raises
    ------
    ValueError
        If a value is NaN, or a lower end is above its upper end.

    Examples
    --------
    >>> from scvi_causal.metrics import interval_coverage
    >>> interval_coverage([0.0, 1.0, 5.0, 3.0], [0.0, 0.0, 0.0, 0.0], [4.0, 4.0, 4.0, 4.0])
    0.75
    """
    truth, lower, upper = np.broadcast_arrays(*(np.asarray(x, dtype=np.float64) for x in (truth, lower, upper)))
    for name, x in {"truth": truth, "lower": lower, "upper": upper}.items():
        n_bad = int(np.isnan(x).sum())
        if n_bad:
            raise ValueError(f"{name}: {n_bad} of {x.size} values are NaN. Leave them out on all three sides.")
    crossed = int((lower > upper).sum())
    if crossed:
        raise ValueError(f"{crossed} of {truth.size} intervals have a lower end above the upper one. Are they swapped?")
    return float(((lower <= truth) & (truth <= upper)).mean()) if truth.size else float("nan")


def pit_values(observed, predicted, seed: int = 0, *, max_cells: int | None = None) -> np.ndarray:
    r"""Randomised probability integral transform of every observed value in the predicted cells.

    .. math:: u = \frac{\#\{\hat x < x\} + V\,(1 + \#\{\hat x = x\})}{m + 1},\quad V \sim U(0, 1)

    Uniform on (0, 1) where predicted and observed cells of a gene have the same distribution: exactly, for any number ``m`` of
    predicted cells and with ties, of which zeros make many. A histogram shaped like a U says that predicted cells scatter
    too little, one with a hump that they scatter too much, a slope that they are too low or too high.

    Parameters
    ----------
    observed, predicted
        (cells, genes), dense or sparse, on the same scale; ``predicted`` as draws (``sample=True``).
    seed
        Of ``V``, and of the choice of cells.
    max_cells
        Cells of each population at most: the result is dense, of the size of ``observed``.

    Returns
    -------
    (observed cells, genes) float64.

    Raises
    ------
    ValueError
        If the genes differ, a population is empty or a value is not finite.

    References
    ----------
    Smith, *Diagnostic checks of non-standard time series models*, J. Forecasting 1985; Czado, Gneiting and Held, *Predictive
    model assessment for count data*, Biometrics 2009.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import pit_values
    >>> real, draws = np.random.default_rng(0).poisson(1.0, (2, 2000, 1))
    >>> shares = np.histogram(pit_values(real, draws), bins=4, range=(0, 1))[0] / 2000
    >>> bool(np.abs(shares - 0.25).max() < 0.02)
    True
    """
    rng = np.random.default_rng(seed)
    observed, predicted = _two_populations(observed, predicted, max_cells, rng)
    n, m = observed.shape[0], predicted.shape[0]
    pit = np.empty(observed.shape)
    for genes, (real, draws) in gene_blocks(observed, predicted):
        _check_finite(real, draws)
        draws.sort(axis=1)
        for gene, (x, d) in enumerate(zip(real, draws, strict=True), start=genes.start):
            below, up_to = np.searchsorted(d, x, side="left"), np.searchsorted(d, x, side="right")
            pit[:, gene] = (below + rng.random(n) * (1 + up_to - below)) / (m + 1)
    return pit


def coverage_of_cells(
    observed, predicted, level: float = 0.9, seed: int = 0, *, genes=None, max_cells: int | None = None
) -> float:
    """Share of observed values inside the central interval of the predicted cells of their gene, over cells and genes.

    The share of the values of :func:`pit_values` in the middle ``level``, as its expectation over ``V``, so that nothing is
    drawn. Range [0, 1]; best is ``level``: below it predicted cells scatter too little or lie elsewhere, above it they scatter
    too much. Unbiased: cells of the observed distribution score ``level`` on average for any number of cells. A gene that is
    zero on both sides counts ``level``, so most silent genes hide what the others say: restrict it to ``genes``.

    Parameters
    ----------
    observed, predicted
        (cells, genes), dense or sparse, on the same scale; ``predicted`` as draws (``sample=True``).
    level
        Of the interval, in (0, 1).
    seed
        Of the choice of cells.
    genes
        Indices or a boolean mask to restrict to.
    max_cells
        Cells of each population at most; ``None`` takes all.

    Returns
    -------
    float; NaN without a single gene, and where ``predicted`` has too few cells for a value outside of the interval to be seen
    (fewer than ``2 / (1 - level) - 1``, which is 19 for 0.9).

    Raises
    ------
    ValueError
        If the genes differ, a population is empty, a value is not finite, or ``level`` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import coverage_of_cells
    >>> real, draws = np.random.default_rng(0).normal(size=(2, 1000, 5))
    >>> round(coverage_of_cells(real, draws), 2), round(coverage_of_cells(real, draws / 2), 2)
    (0.9, 0.59)
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}.")
    observed, predicted = _two_populations(observed, predicted, max_cells, np.random.default_rng(seed))
    if genes is not None:
        observed, predicted = observed[:, genes], predicted[:, genes]
    n_draws, tail = predicted.shape[0], (1 - level) / 2
    if tail * (n_draws + 1) < 1 - 1e-9 or observed.shape[1] == 0:
        return float("nan")
    outside = 0.0
    for _, (real, draws) in gene_blocks(observed, predicted):
        _check_finite(real, draws)
        draws.sort(axis=1)
        outside += _share_below(real, draws, tail).sum() + _share_below(-real, -draws[:, ::-1], tail).sum()
    return float(1.0 - outside / observed.shape[1])


def _share_below(real: np.ndarray, draws: np.ndarray, tail: float) -> np.ndarray:
    """(genes,) expected share of the values of ``real`` whose transform is below ``tail``; ``draws`` sorted over cells.

    The transform of ``x`` is uniform between ``a`` and ``a + b + 1`` over ``m + 1``, with ``a`` draws below ``x`` and ``b``
    equal to it. With ``bound = tail * (m + 1)`` and ``k`` its whole part it lies below the bound for x < draws[k - 1], above it
    for x > draws[k], and partly in between and on the two draws themselves: five comparisons in the place of a rank for
    each value.
    """
    bound = tail * (draws.shape[1] + 1)
    k = int(bound + 1e-9)
    low, high = draws[:, [k - 1]], draws[:, [k]]
    share = np.count_nonzero(real < low, axis=1).astype(np.float64)
    share += np.count_nonzero((low < real) & (real < high), axis=1) * (bound - k)
    for value, counted in ((low, np.ones(len(low), dtype=bool)), (high, (low != high).ravel())):
        below, equal = (np.count_nonzero(mask, axis=1) for mask in (draws < value, draws == value))
        partly = np.clip((bound - below) / (equal + 1), 0.0, 1.0)
        share += np.count_nonzero(real == value, axis=1) * np.where(counted, partly, 0.0)
    return share / real.shape[1]


def _two_populations(observed, predicted, max_cells, rng):
    observed, predicted = as_cells(observed, "observed"), as_cells(predicted, "predicted")
    check_same_genes(observed=observed, predicted=predicted)
    for name, x in {"observed": observed, "predicted": predicted}.items():
        if x.shape[0] == 0:
            raise ValueError(f"{name}: no cells, so there is nothing to compare. Check the mask that selected them.")
    return subsample_cells(observed, max_cells, rng), subsample_cells(predicted, max_cells, rng)


def _check_finite(observed: np.ndarray, predicted: np.ndarray) -> None:
    for name, block in {"observed": observed, "predicted": predicted}.items():
        n_bad = int((~np.isfinite(block)).any(axis=1).sum())
        if n_bad:
            raise ValueError(f"{name}: {n_bad} genes hold NaN or infinite values. They cannot be ranked.")
