"""Distances between two populations of cells, in blocks: memory of a block, never (n, m, genes).

Pairwise distances come from Gram matrices, ``|x - y|^2 = |x|^2 + |y|^2 - 2 x.y``, in float64 (float32 loses close pairs to
cancellation). One name means different numbers in different libraries, so each docstring says which estimator it is.

Why not a library: dcor, geomloss, pertpy and ``scipy.spatial.distance.cdist`` want a dense copy of both populations and keep
the whole matrix of distances, once for every metric; here sparse cells stay sparse, and the energy distance and MMD share one
pass. The tests hold both against ``cdist``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ._arrays import as_cells, check_same_genes, row_blocks, subsample_cells

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# values of a block of genes over all cells, for what has to sort them: 4 MB in float32
_BLOCK_VALUES = 2**20


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
    (between,) = mean_between(observed, predicted, [np.sqrt])
    within = [mean_within(x, [np.sqrt], unbiased)[0] for x in (observed, predicted)]
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
    kernel = gaussian_kernel(*widths)
    (between,) = mean_between(observed, predicted, [kernel])
    within = [mean_within(x, [kernel], unbiased)[0] for x in (observed, predicted)]
    return float(within[0] + within[1] - 2 * between)


def gaussian_kernel(*bandwidths: float) -> Callable:
    """Kernel of squared distances, the average over bandwidths; can be pickled."""
    return partial(_gaussian, bandwidths=bandwidths)


def _gaussian(squared: np.ndarray, bandwidths: tuple[float, ...]) -> np.ndarray:
    if len(bandwidths) == 1:
        return np.exp(squared * (-1.0 / bandwidths[0]))
    return sum(np.exp(squared * (-1.0 / h)) for h in bandwidths) / len(bandwidths)


def wasserstein_genes(
    observed, predicted, genes: np.ndarray | None = None, *, max_cells: int | None = None, seed: int = 0
) -> np.ndarray:
    r"""1-Wasserstein distance of every gene on its own: how far its distribution has to be moved.

    .. math:: W_g = \int_0^1 \big|F_g^{-1}(u) - \hat F_g^{-1}(u)\big|\,du

    Range [0, inf), 0 is best, in units of the expression; at least the absolute difference of the means. Exact, not entropic,
    not squared. Biased upwards by sampling noise, which falls with the square root of the number of cells: compare numbers on
    as many cells, and with that of a replicate. Says nothing about how genes go together.

    Equal to :func:`scipy.stats.wasserstein_distance` gene by gene and to ``ot.wasserstein_1d(..., p=1)`` of POT, which need a
    loop over genes and a dense copy, respectively. Here the quantile levels at which two empirical distributions step are
    whole numbers that all genes share, and columns are made dense and sorted a few at a time.

    Parameters
    ----------
    observed, predicted
        (cells, genes), dense or sparse; ``predicted`` must hold draws of cells.
    genes
        Indices to restrict to.
    max_cells, seed
        As in :func:`energy_distance`.

    Returns
    -------
    (genes,) float64.

    Raises
    ------
    ValueError
        If numbers of genes differ or a population is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import wasserstein_genes
    >>> wasserstein_genes(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 1.0]]))
    array([2., 0.])
    """
    observed, predicted = _two_populations(observed, predicted, max_cells, seed)
    if genes is not None:
        observed, predicted = observed[:, genes], predicted[:, genes]
    width = max(1, _BLOCK_VALUES // (observed.shape[0] + predicted.shape[0]))
    pieces = [
        transport_cost(x, y)
        for x, y in zip(sorted_columns(observed, width), sorted_columns(predicted, width), strict=True)
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0)


def sorted_columns(x, width: int | None = None) -> Iterator[np.ndarray]:
    """The values of each gene in ascending order, as (at most ``width`` genes, cells): only these are dense."""
    columns = x.tocsc() if sp.issparse(x) else x
    width = max(1, _BLOCK_VALUES // x.shape[0]) if width is None else width
    for start in range(0, x.shape[1], width):
        block = columns[:, start : start + width]
        block = block.toarray() if sp.issparse(block) else block
        block = np.array(block.T, dtype=np.result_type(block, np.float32), order="C")
        block.sort(axis=1)
        yield block


def transport_cost(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wasserstein distance of each row of two arrays (genes, cells) with ascending rows."""
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return np.abs(np.subtract(x, y, dtype=np.float64)).mean(axis=1)
    # both quantile functions are constant between these levels, in units of 1 / (n m)
    levels = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    weights = np.diff(levels, prepend=0) / (n * m)
    return np.abs(np.subtract(x[:, (levels - 1) // m], y[:, (levels - 1) // n], dtype=np.float64)) @ weights


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
    pca = PCA(n_components=n_components, svd_solver="arpack", random_state=seed).fit(x)
    # projections in float32 differ in the sixth digit with where an array happens to lie in memory
    pca.components_, pca.mean_ = pca.components_.astype(np.float64), pca.mean_.astype(np.float64)
    return pca


def _two_populations(observed, predicted, max_cells, seed):
    observed, predicted = as_cells(observed, "observed"), as_cells(predicted, "predicted")
    check_same_genes(observed=observed, predicted=predicted)
    for name, x in {"observed": observed, "predicted": predicted}.items():
        if x.shape[0] == 0:
            raise ValueError(f"{name}: no cells to measure a distance from.")
    rng = np.random.default_rng(seed)
    return subsample_cells(observed, max_cells, rng), subsample_cells(predicted, max_cells, rng)


def mean_between(x, y, functions: Sequence[Callable]) -> list[float]:
    """Mean over all pairs of functions of the squared distance, in one pass over the distances."""
    totals = np.zeros(len(functions))
    for block, _, _ in _distance_blocks(x, y):
        totals += [function(block).sum() for function in functions]
    return list(totals / (x.shape[0] * y.shape[0]))


def mean_within(x, functions: Sequence[Callable], unbiased: bool = True) -> list[float]:
    """The same over the pairs of one population; without those of a cell with itself if unbiased."""
    n = x.shape[0]
    # the distance of a cell to itself is known exactly, whatever rounding makes of it
    at_zero = np.array([float(function(np.zeros(1))[0]) for function in functions])
    twice = np.zeros(len(functions))
    for block, row, column in _distance_blocks(x, x, upper_only=True):
        if row == column:  # both run in steps of the same size, so a block is on the diagonal or clear of it
            np.fill_diagonal(block, 0.0)
            twice += [function(block).sum() for function in functions] - block.shape[0] * at_zero
        else:
            twice += [2 * function(block).sum() for function in functions]
    if unbiased:
        return list(twice / (n * (n - 1))) if n > 1 else [float("nan")] * len(functions)
    return list((twice + n * at_zero) / n**2)


def _pairs_within(x) -> Iterator[np.ndarray]:
    """Squared distances of the pairs i < j, in flat pieces."""
    for block, row, column in _distance_blocks(x, x, upper_only=True):
        yield block[np.triu_indices(block.shape[0], 1)] if row == column else block.ravel()


def _distance_blocks(x, y, upper_only: bool = False, size: int = 256):
    """Yield ``(squared distances, first row, first column)`` over blocks of rows of ``x`` and ``y``."""
    y_norm = _squared_norms(y)
    for row, x_block in row_blocks(x, size):
        x_norm = np.einsum("ij,ij->i", x_block, x_block)
        for column in range(row if upper_only else 0, y.shape[0], size):
            if upper_only and column == row:
                gram = x_block @ x_block.T  # the same matrix on both sides: half of the work
            else:
                y_block = y[column : column + size]
                # a sparse block times a dense one gives a dense result without densifying the sparse one
                gram = (
                    (y_block @ x_block.T).T
                    if sp.issparse(y_block)
                    else x_block @ y_block.astype(np.float64, copy=False).T
                )
            gram *= -2
            gram += x_norm[:, None]
            gram += y_norm[None, column : column + size]
            yield np.maximum(gram, 0, out=gram), row, column


def _squared_norms(x) -> np.ndarray:
    if sp.issparse(x):
        return np.asarray(x.astype(np.float64).power(2).sum(axis=1)).ravel()
    return np.concatenate([np.einsum("ij,ij->i", block, block) for _, block in row_blocks(x)])
