"""Mean and variance of a population, computed once and handed to every metric that needs the sampling noise of a mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ._arrays import as_cells, check_same_genes, is_profile, mean_profile, row_blocks


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean, variance and number of cells of one population: all that a t-test or a noise correction asks of it.

    Parameters
    ----------
    mean
        (genes,) mean over cells.
    variance
        (genes,) sample variance over cells (``ddof=1``); NaN where there are fewer than two cells.
    n_cells
        Number of cells.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import Moments, cell_moments
    >>> moments = cell_moments(np.array([[0.0, 1.0], [2.0, 1.0]]))
    >>> moments.mean, moments.variance, moments.noise
    (array([1., 1.]), array([2., 0.]), array([1., 0.]))
    """

    mean: np.ndarray
    variance: np.ndarray
    n_cells: int

    @property
    def noise(self) -> np.ndarray:
        """(genes,) sampling variance of the mean, ``variance / n_cells``."""
        return self.variance / self.n_cells


def cell_moments(cells, name: str = "cells") -> Moments:
    """Mean and variance of every gene over cells; :class:`Moments` pass through.

    Two passes for dense input, centred moments of the stored values for sparse input, in float64, so that a gene with a
    large mean and a small variance does not lose it to cancellation. Sparse input is not densified.

    Parameters
    ----------
    cells
        (cells, genes), dense or sparse; or :class:`Moments`. A (genes,) profile is taken as it is: a mean without sampling
        noise (variance zero), for what is not an average of draws.
    name
        What to call ``cells`` in an error.

    Returns
    -------
    Moments

    Raises
    ------
    ValueError
        If there is not a single cell, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import cell_moments
    >>> cell_moments(np.array([[0.0, 1.0], [2.0, 1.0]])).variance
    array([2., 0.])
    """
    if isinstance(cells, Moments):
        return cells
    mean = mean_profile(cells, name)
    if is_profile(cells):
        return Moments(mean, np.zeros_like(mean), 1)
    cells = as_cells(cells, name)
    n_cells, n_genes = cells.shape
    if n_cells < 2:
        return Moments(mean, np.full(n_genes, np.nan), n_cells)
    if sp.issparse(cells):
        stored = np.bincount(cells.indices, minlength=n_genes)
        centred = cells.data - mean[cells.indices]
        total = np.bincount(cells.indices, weights=centred * centred, minlength=n_genes) + (n_cells - stored) * mean**2
    else:
        total = np.zeros(n_genes)
        for _, block in row_blocks(cells, 256):  # a block that stays in the cache
            block = block - mean
            total += np.einsum("ij,ij->j", block, block)
    return Moments(mean, total / (n_cells - 1), n_cells)


def profiles_of(genes=None, /, **populations) -> list[np.ndarray]:
    """(genes,) means of populations, profiles or :class:`Moments` given by name: the same genes in each, then ``genes`` of them."""
    means = {name: x.mean if isinstance(x, Moments) else mean_profile(x, name) for name, x in populations.items()}
    check_same_genes(**means)
    return [mean if genes is None else mean[genes] for mean in means.values()]


def effects_of(observed, predicted, control_source_mean, control_reference=None, genes=None) -> list[np.ndarray]:
    """(genes,) predicted and observed effect, each against its own controls; ``None`` shares those of the prediction."""
    control_reference = control_source_mean if control_reference is None else control_reference
    truth, guess, source, reference = profiles_of(
        genes,
        observed=observed,
        predicted=predicted,
        control_source=control_source_mean,
        control_reference=control_reference,
    )
    return [guess - source, truth - reference]
