"""Distances between two populations of cells, in blocks: memory of a block, never (n, m, genes).

Pairwise distances come from Gram matrices, ``|x - y|^2 = |x|^2 + |y|^2 - 2 x.y``, in float64 (float32 loses close pairs to
cancellation). One name means different numbers in different libraries, so each docstring says which estimator it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ._arrays import as_cells, check_same_genes, row_blocks, subsample_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def energy_distance(
    observed, predicted, *, unbiased: bool = True, max_cells: int | None = None, seed: int = 0
) -> float:
    r"""Energy distance of two populations, Euclidean, not squared and without a square root.

    .. math:: E = 2\,\mathbb{E}|x - y| - \mathbb{E}|x - x'| - \mathbb{E}|y - y'|

    0 for equal distributions, larger is worse; in units of the expression. The default is the U-statistic: the pairs of a
    cell with itself are left out, so it is unbiased, does not depend on the number of cells, and falls slightly below 0 at
    times. ``unbiased=False`` is the V-statistic, which is never negative and adds about (mean distance within) / n per
    population: the convention of pertpy, dcor and cell-eval (geomloss prints half of it).

    Parameters
    ----------
    observed, predicted
        (cells, features), dense or sparse: log1p-normalised expression, or its PCA from :func:`fit_pca`. ``predicted`` must
        hold draws of cells; expected values have too little variance and are punished for it.
    unbiased
        U-statistic (default) or V-statistic.
    max_cells
        Cells drawn at most from each population; ``None`` takes all. The cost is quadratic in the cells.
    seed
        Of that draw.

    Returns
    -------
    float; NaN for the U-statistic of a single cell.

    References
    ----------
    Szekely and Rizzo, *Energy statistics*, J. Stat. Plan. Inference 2013, eq. 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import energy_distance
    >>> energy_distance(np.zeros((2, 1)), np.full((3, 1), 2.0))
    4.0
    """
    observed, predicted = _two_populations(observed, predicted, max_cells, seed)
    distance = lambda squared: np.sqrt(squared)
    between = _mean_between(observed, predicted, distance)
    within = [_mean_within(x, distance, 0.0, unbiased) for x in (observed, predicted)]
    return float(2 * between - within[0] - within[1])


def mmd_squared(
    observed,
    predicted,
    *,
    bandwidths: float | Sequence[float] | None = None,
    unbiased: bool = True,
    max_cells: int | None = None,
    seed: int = 0,
) -> float:
    r"""Squared maximum mean discrepancy with a Gaussian kernel.

    .. math:: \mathrm{MMD}^2 = \mathbb{E}\,k(x, x') + \mathbb{E}\,k(y, y') - 2\,\mathbb{E}\,k(x, y),\quad
        k(x, y) = \exp(-|x - y|^2 / h)

    0 for equal distributions, at most 2; larger is worse. The default is the unbiased U-statistic (may fall below 0).

    Parameters
    ----------
    observed, predicted
        (cells, features), dense or sparse.
    bandwidths
        One ``h`` or several (the kernels are averaged). ``None`` takes the median squared distance among the *observed*
        cells, so that all models are measured with the same kernel.
    unbiased
        U-statistic (default) or V-statistic.
    max_cells, seed
        As in :func:`energy_distance`.

    Returns
    -------
    float; NaN for the U-statistic of a single cell.

    References
    ----------
    Gretton et al., *A kernel two-sample test*, JMLR 2012, lemma 6.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import mmd_squared
    >>> round(mmd_squared(np.zeros((2, 1)), np.ones((2, 1)), bandwidths=1.0), 6)  # 2 - 2 / e
    1.264241
    """
    observed, predicted = _two_populations(observed, predicted, max_cells, seed)
    widths = np.atleast_1d(median_bandwidth(observed) if bandwidths is None else np.asarray(bandwidths, dtype=float))
    if not (widths > 0).all():
        raise ValueError(f"bandwidths need to be positive, got {widths.tolist()}.")
    kernel = lambda squared: sum(np.exp(-squared / h) for h in widths) / widths.size
    between = _mean_between(observed, predicted, kernel)
    within = [_mean_within(x, kernel, 1.0, unbiased) for x in (observed, predicted)]
    return float(within[0] + within[1] - 2 * between)


def median_bandwidth(x, max_cells: int = 1000) -> float:
    """Median squared distance between different cells (at most ``max_cells`` of them, evenly spaced).

    Falls back to the mean, then to 1, where most cells are copies of each other.
    """
    x = as_cells(x)
    x = x[np.unique(np.linspace(0, x.shape[0] - 1, min(max_cells, x.shape[0])).astype(int))]
    squared = np.concatenate(list(_pairs_within(x)))
    if squared.size == 0 or squared.mean() <= 0:
        return 1.0
    median = float(np.median(squared))
    return median if median > 0 else float(squared.mean())


def fit_pca(x, n_components: int = 50, seed: int = 0):
    """Fit a PCA on training cells, in which distances are less noisy than over all genes.

    Fit it on cells that every model saw, never on predictions: the space must not depend on what is scored.

    Parameters
    ----------
    x
        (cells, genes) training cells, dense or sparse (centred implicitly, not densified).
    n_components
        At most; limited by the numbers of cells and genes.
    seed
        Of the solver's starting vector.

    Returns
    -------
    A fitted :class:`sklearn.decomposition.PCA`; use ``.transform``.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import fit_pca
    >>> cells = np.random.default_rng(0).normal(size=(20, 5))
    >>> fit_pca(cells, n_components=2).transform(cells).shape
    (20, 2)
    """
    from sklearn.decomposition import PCA

    x = as_cells(x)
    n_components = min(n_components, min(x.shape) - 1)
    if n_components < 1:
        raise ValueError(f"A PCA needs at least 2 cells and 2 genes, got {x.shape[0]} x {x.shape[1]}.")
    return PCA(n_components=n_components, svd_solver="arpack", random_state=seed).fit(x)


def _two_populations(observed, predicted, max_cells, seed):
    observed, predicted = as_cells(observed, "observed"), as_cells(predicted, "predicted")
    check_same_genes(observed=observed, predicted=predicted)
    for name, x in {"observed": observed, "predicted": predicted}.items():
        if x.shape[0] == 0:
            raise ValueError(f"{name}: no cells to measure a distance from.")
    rng = np.random.default_rng(seed)
    return subsample_cells(observed, max_cells, rng), subsample_cells(predicted, max_cells, rng)


def _mean_between(x, y, function: Callable) -> float:
    total = sum(function(block).sum() for block, _, _ in _distance_blocks(x, y))
    return total / (x.shape[0] * y.shape[0])


def _mean_within(x, function: Callable, value_at_zero: float, unbiased: bool) -> float:
    """Mean over pairs of one population; the diagonal is known exactly (``value_at_zero``) and is never computed."""
    n = x.shape[0]
    pairs = 0.0
    for squared in _pairs_within(x):
        pairs += function(squared).sum()
    if unbiased:
        return 2 * pairs / (n * (n - 1)) if n > 1 else float("nan")
    return (2 * pairs + n * value_at_zero) / n**2


def _pairs_within(x) -> Iterator[np.ndarray]:
    """Squared distances of the pairs i < j, in flat pieces."""
    for block, row, column in _distance_blocks(x, x, upper_only=True):
        on_diagonal = row == column  # both run in steps of the same size, so a block is on the diagonal or clear of it
        yield block[np.triu_indices(block.shape[0], 1)] if on_diagonal else block.ravel()


def _distance_blocks(x, y, upper_only: bool = False, size: int = 1024):
    """Yield ``(squared distances, first row, first column)`` over blocks of rows of ``x`` and ``y``."""
    y_norm = _squared_norms(y)
    for row, x_block in row_blocks(x, size):
        x_norm = np.einsum("ij,ij->i", x_block, x_block)
        for column in range(row if upper_only else 0, y.shape[0], size):
            y_block = y[column : column + size]
            # a sparse block times a dense one gives a dense result without densifying the sparse one
            gram = (y_block @ x_block.T).T if sp.issparse(y_block) else x_block @ y_block.astype(np.float64).T
            squared = x_norm[:, None] + y_norm[None, column : column + size] - 2 * gram
            yield np.maximum(squared, 0, out=squared), row, column


def _squared_norms(x) -> np.ndarray:
    if sp.issparse(x):
        return np.asarray(x.astype(np.float64).power(2).sum(axis=1)).ravel()
    return np.concatenate([np.einsum("ij,ij->i", block, block) for _, block in row_blocks(x)])
