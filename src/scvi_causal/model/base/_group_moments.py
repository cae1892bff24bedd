"""Moments of groups of cells from sums over sparse pieces: what population means are estimated from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS

from scvi_causal._constants import NORMALIZED_TOTAL
from scvi_causal.dataloaders import CausalDataset, SparseRows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.data import AnnDataManager

_STEP = 4_096


@dataclass(frozen=True)
class GroupMoments:
    """Number of cells, mean and variance per gene of groups of cells.

    Parameters
    ----------
    n_cells
        (n_groups,)
    mean
        (n_groups, n_genes)
    variance
        (n_groups, n_genes) unbiased variance of cells; NaN for groups of one cell.
    """

    n_cells: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class ExpressionReader:
    """Expression of rows of a registered AnnData on the scale asked for, as float64 CSR.

    Parameters
    ----------
    adata_manager
        Manager of the data.
    scale
        ``"log1p"``: log(1 + counts per 10,000 of the library); ``"normalized"``: these counts; ``"continuous"``: as it is.
    """

    def __init__(self, adata_manager: AnnDataManager, scale: str):
        self._dataset = CausalDataset(adata_manager, [REGISTRY_KEYS.X_KEY], load_sparse_tensor=True)
        self._scale, self._library = scale, None
        if REGISTRY_KEYS.SIZE_FACTOR_KEY in adata_manager.data_registry:
            library = adata_manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY)
            self._library = np.asarray(library, dtype=np.float64).ravel()

    def __call__(self, rows: np.ndarray) -> csr_matrix:
        """(rows, genes) expression."""
        x = self._dataset[rows][REGISTRY_KEYS.X_KEY]
        if isinstance(x, SparseRows):
            indptr = np.concatenate([[0], np.cumsum(x.counts)])
            x = csr_matrix((x.values, x.columns, indptr), shape=(len(rows), x.n_columns))
        else:
            x = csr_matrix(x)
        x = x.astype(np.float64)
        if self._scale != "continuous":
            total = np.asarray(x.sum(1)).ravel() if self._library is None else self._library[rows]
            per_entry = np.repeat(NORMALIZED_TOTAL / np.where(total > 0, total, 1.0), np.diff(x.indptr))
            x.data = x.data * per_entry
        if self._scale == "log1p":
            x.data = np.log1p(x.data)
        return x


def iterate_expression(
    adata_manager: AnnDataManager, rows: np.ndarray, scale: str
) -> Iterator[tuple[slice, csr_matrix]]:
    """Pieces of the expression of ``rows``, never more than a few thousand cells at once; see :class:`ExpressionReader`."""
    read = ExpressionReader(adata_manager, scale)
    for start in range(0, len(rows), _STEP):
        part = rows[start : start + _STEP]
        yield slice(start, start + len(part)), read(part)


def group_moments(
    pieces: Iterator[tuple[slice, csr_matrix]], groups: np.ndarray, n_groups: int, n_genes: int
) -> GroupMoments:
    """Moments of groups of cells from sums over sparse pieces; float64, because sums of squares cancel.

    Parameters
    ----------
    pieces
        Cells ``slice`` of the whole and their expression.
    groups
        (n_cells,) group of each cell.
    n_groups, n_genes
        Size of the result.
    """
    total, squares = np.zeros((n_groups, n_genes)), np.zeros((n_groups, n_genes))
    for part, x in pieces:
        n = x.shape[0]
        indicator = csr_matrix((np.ones(n), (groups[part], np.arange(n))), shape=(n_groups, n))
        for target, values in ((total, x), (squares, x.multiply(x).tocsr())):
            added = (indicator @ values).tocoo()
            target[added.row, added.col] += added.data
    n_cells = np.bincount(groups, minlength=n_groups)
    per_group = np.maximum(n_cells, 1)[:, None]
    mean = total / per_group
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.clip(squares - per_group * mean**2, 0.0, None) / (n_cells - 1)[:, None]
    variance[n_cells < 2] = np.nan
    return GroupMoments(n_cells, mean, variance)
