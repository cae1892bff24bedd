r"""Has a prediction seen the cells it is scored against? Two signs that no honest prediction shows.

*Copies.* A predicted cell that equals a test cell in every gene, and no cell that the model was given.

*Nearer than noise.* The mean of n test cells differs from the true mean by its sampling noise, which a prediction made
without these cells cannot know: the squared distance :math:`S = |\hat b - b|^2` of an honest prediction is at least
:math:`\operatorname{tr}(\Sigma) / n` in expectation, however good it is. For a perfect prediction
:math:`\nu S n / \operatorname{tr}(\Sigma)` follows about a chi-squared distribution with
:math:`\nu = \operatorname{tr}(\Sigma)^2 / \operatorname{tr}(\Sigma^2)` degrees of freedom (Satterthwaite); every other honest one
lies further right. This is the ceiling of the squared error, with its interval. A noise ceiling of correlations would accuse
the innocent: a prediction without noise of its own rightly comes out above a replicate.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from scipy.stats import chi2

if TYPE_CHECKING:
    from collections.abc import Sequence

COPIES = "predicted cells are test cells"
TOO_NEAR = "nearer to the test cells than their sampling noise allows"
LEVEL = 1e-6
"""Probability below which a squared error is no luck: one false accusation in a million perfect predictions, none of others."""
_MIN_EXPRESSED = 8  # genes; cells that express fewer, by one count each, are equal by chance
_MAX_CELLS = 300  # for the degrees of freedom, which come out too small, and so cautious, with few cells
_TOLERANCE = 1e-4  # of equal values that went through float32
_SAME_PROJECTION = 1e-5  # and of what is summed over genes, per unit of its size


def project(x: Any) -> np.ndarray:
    """(cells,) a number that equal cells share and others hardly ever do: their place along a random direction."""
    direction = np.random.default_rng(20).normal(size=x.shape[1]) / np.sqrt(x.shape[1])
    return np.asarray(x @ direction, dtype=np.float64).ravel()


def _nearest(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of the nearest of the sorted ``known`` values to each value, and whether it is the same to rounding."""
    right = np.clip(np.searchsorted(known, values), 1, len(known) - 1) if len(known) > 1 else np.zeros(len(values), int)
    left = np.maximum(right - 1, 0)
    place = np.where(np.abs(values - known[left]) < np.abs(values - known[right]), left, right)
    return place, np.abs(values - known[place]) <= _SAME_PROJECTION * np.maximum(1.0, np.abs(values))


class HiddenCells:
    """Cells that no model was given, to recognise copies of them.

    Parameters
    ----------
    x
        (cells, genes) expression of the whole screen.
    hidden
        Positions of cells that are hidden; those that equal a cell in ``shown``, or express hardly a gene, are left out.
    shown
        Positions of the cells that models are given.
    projection
        :func:`project` of ``x``.
    """

    def __init__(self, x: Any, hidden: np.ndarray, shown: np.ndarray, projection: np.ndarray):
        hidden = np.unique(hidden)
        cells = x[hidden]
        expressed = np.diff(cells.indptr) if sp.issparse(cells) else np.count_nonzero(cells, axis=1)
        known = np.sort(projection[shown])
        _, given = _nearest(projection[hidden], known) if len(known) else (None, np.zeros(len(hidden), dtype=bool))
        rows = hidden[(expressed >= min(_MIN_EXPRESSED, x.shape[1])) & ~given]
        self._rows = rows[np.argsort(projection[rows])]
        self._x, self._projection = x, projection[self._rows]

    def n_copies(self, predicted: Any) -> int:
        """How many of the (cells, genes) predicted cells are hidden cells."""
        if not len(self._rows):
            return 0
        place, same = _nearest(project(predicted), self._projection)
        candidates = np.flatnonzero(same)
        n = 0
        for part in np.array_split(candidates, len(candidates) // 1000 + 1):
            mine, theirs = (_dense(m) for m in (predicted[part], self._x[self._rows[place[part]]]))
            n += int((np.abs(mine - theirs) <= _TOLERANCE * np.maximum(1.0, np.abs(theirs))).all(axis=1).sum())
        return n


class NoiseFloor:
    """What the sampling noise of test cells does to the squared error of the best possible prediction.

    Parameters
    ----------
    observed
        (cells, genes) test cells.
    variance
        (genes,) their sample variances.
    """

    def __init__(self, observed: Any, variance: np.ndarray):
        self._observed = observed
        self.expected = float(np.sum(variance)) / observed.shape[0]
        """Squared error of a perfect prediction, in expectation."""

    @cached_property
    def degrees_of_freedom(self) -> float:
        """Number of directions that the noise has, as far as one number says."""
        cells = self._observed[:: max(1, self._observed.shape[0] // _MAX_CELLS)][:_MAX_CELLS]
        centred = _dense(cells) - _dense(cells).mean(axis=0)
        gram = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
        total = np.trace(gram)
        return float(total**2 / np.square(gram).sum()) if total > 0 else 1.0


def is_too_near(squared_errors: Sequence[float], floors: Sequence[NoiseFloor]) -> bool:
    """Whether the squared errors of one prediction, or of several together, lie below what noise allows."""
    usable = [(error, f) for error, f in zip(squared_errors, floors, strict=True) if f.expected > 0]
    if not usable:
        return False
    degrees = np.array([f.degrees_of_freedom for _, f in usable])
    ratio = np.array([error / f.expected for error, f in usable])
    return bool(chi2.cdf(degrees @ ratio, degrees.sum()) < LEVEL)


def _dense(x: Any) -> np.ndarray:
    return np.asarray(x.toarray() if sp.issparse(x) else x, dtype=np.float64)
