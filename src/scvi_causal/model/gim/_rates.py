r"""Counts: populations as rates, and how cells follow a change of rate.

Nodes live on the scale of log(1 + counts per 10,000), whose mean depends on the depth of a cell and on how much of a gene there
is already: one and the same regulation moves it by different amounts in different cells. What is carried over from the nodes to all
genes is therefore the *fold change of the rate*,

.. math::
    l_{kg} = \log\frac{\mu_{kg} + \epsilon}{\mu_{0g} + \epsilon},

and a cell follows it as counts follow a rate: a gene that falls is thinned, one that rises gains counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS

from scvi_causal._constants import NORMALIZED_TOTAL
from scvi_causal.nn import AbductedCounts

if TYPE_CHECKING:
    from scvi.data import AnnDataManager
    from torch import Tensor

PSEUDO_RATE = 0.2
"""Counts per 10,000 below which a gene counts as silent: folds of less are noise."""
_LARGEST_FOLD = 8.0  # natural logarithm
_SMALLEST_RATE = 1e-6
_PRIOR_DISPERSION, _PRIOR_SQUARE = 1.0, 0.01  # inverse dispersion where expression says nothing
_DISPERSIONS = (0.2, 30.0)


@dataclass(frozen=True)
class Rates:
    """Rates of groups of cells, in counts per 10,000.

    Parameters
    ----------
    mean
        (n_groups, n_genes)
    dispersion
        (n_genes,) inverse dispersion of the counts of cells within their groups; large where cells differ by chance only.
    slope
        (n_genes,) change of the log rate per change of the mean log(1 + rate), in control cells.
    """

    mean: np.ndarray
    dispersion: np.ndarray
    slope: np.ndarray

    @property
    def log(self) -> np.ndarray:
        """(n_groups, n_genes) logarithms of which fold changes are taken."""
        return np.log(self.mean + PSEUDO_RATE)


class RateSums:
    """Sums over cells, filled piece by piece.

    Parameters
    ----------
    manager
        Manager of the data, for the size factor.
    rows
        (n,) rows of the AnnData.
    group
        (n,) group of each.
    is_control
        (n_groups,) whether a group consists of controls.
    n_genes
        Number of genes.
    """

    def __init__(
        self, manager: AnnDataManager, rows: np.ndarray, group: np.ndarray, is_control: np.ndarray, n_genes: int
    ):
        self._group, self._is_control = group, is_control
        self._library = None
        if REGISTRY_KEYS.SIZE_FACTOR_KEY in manager.data_registry:
            library = np.asarray(manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY), dtype=np.float64)
            self._library = library.ravel()[rows]
        self._rate = np.zeros((len(is_control), n_genes))
        # squared rates, what of them is counting noise, and (of controls) what the log gains from the last count
        self._square, self._noise, self._last = np.zeros((3, n_genes))

    def add(self, part: slice, counts: csr_matrix) -> csr_matrix:
        """Add cells by their counts; returns log(1 + counts per 10,000)."""
        library = np.asarray(counts.sum(1)).ravel() if self._library is None else self._library[part]
        unit = np.repeat(NORMALIZED_TOTAL / np.where(library > 0, library, 1.0), np.diff(counts.indptr))
        like = lambda data: csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)
        rate, log = counts.data * unit, np.log1p(counts.data * unit)
        n = counts.shape[0]
        group = self._group[part]
        indicator = csr_matrix((np.ones(n), (group, np.arange(n))), shape=(len(self._is_control), n))
        found = (indicator @ like(rate)).tocoo()
        self._rate[found.row, found.col] += found.data
        self._square += np.asarray(like(rate**2).sum(0)).ravel()
        self._noise += np.asarray(like(rate * unit).sum(0)).ravel()
        gained = counts.data * (log - np.log1p(np.maximum(rate - unit, 0.0)))
        self._last += np.asarray(self._is_control[group].astype(float) @ like(gained)).ravel()
        return like(log)

    def finish(self) -> Rates:
        """What the sums say."""
        n_cells = np.bincount(self._group, minlength=len(self._is_control)).astype(float)
        mean = self._rate / np.maximum(n_cells, 1)[:, None]
        # Var(rate) = noise of counting + mean^2 / dispersion within each group; a gene that a perturbation turns on tells it there
        squares = n_cells @ mean**2 / n_cells.sum()
        excess = (self._square - self._noise) / n_cells.sum() - squares
        inverse = (np.maximum(excess, 0.0) + _PRIOR_SQUARE / _PRIOR_DISPERSION) / (squares + _PRIOR_SQUARE)
        n = n_cells[self._is_control]
        average = n @ mean[self._is_control] / n.sum()
        moved = self._last / n.sum()  # of the mean log by a fold of e, as thinning has it
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = np.where(moved > 0, average / (average + PSEUDO_RATE) / moved, 1.0)
        return Rates(mean, np.clip(1.0 / inverse, *_DISPERSIONS), slope)


def moved_counts(counts: Tensor, library: Tensor, rate: Tensor, log_fold: Tensor, dispersion: Tensor) -> AbductedCounts:
    """Cells whose genes are expressed at other rates: what a module predicts, in expectation and in draws.

    Parameters
    ----------
    counts
        (n, g) counts of the source cells.
    library
        (n, 1) their libraries.
    rate
        (n, g) mean rate of the population of a source cell, in counts per 10,000.
    log_fold
        (n, g) change of the log rate.
    dispersion
        (g,) inverse dispersions.
    """
    depth = library / NORMALIZED_TOTAL
    before, after = (r.clamp_min(_SMALLEST_RATE) * depth for r in (rate, change_rate(rate, log_fold)))
    return AbductedCounts(counts, before, after, dispersion)


def change_rate(rate: Tensor, log_fold: Tensor) -> Tensor:
    """Rates after a change of the logarithm of rates; see :class:`Rates`."""
    gained = torch.expm1(log_fold.clamp(-_LARGEST_FOLD, _LARGEST_FOLD))  # so that no change is exactly none
    return (rate + (rate + PSEUDO_RATE) * gained).clamp_min(0.0)
