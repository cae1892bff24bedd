"""One pass over an expression matrix, in pieces: no dense copy is made, whatever the matrix is and wherever it lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np
from anndata.abc import CSCDataset, CSRDataset
from scipy.sparse import issparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_VALUES = 2**22
_N_EXAMPLES = 3


class _Piece(NamedTuple):
    """Some values of the matrix and where they are."""

    values: np.ndarray
    """1-d; what is not stored in a sparse matrix is not in it."""
    locate: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    """Positions in ``values`` to rows and columns."""
    rows_with: Callable[[np.ndarray], np.ndarray]
    """Boolean mask of ``values`` to the rows that hold one of them."""


@dataclass
class MatrixScan:
    """What was found in a matrix.

    Parameters
    ----------
    n_cells
        Number of rows.
    counts
        Whether negative and fractional values, and empty rows, were looked for.
    """

    n_cells: int
    counts: bool
    n_not_finite: int = 0
    n_negative: int = 0
    n_fractional: int = 0
    examples: dict[str, list[tuple[int, int, float]]] = field(default_factory=dict)
    """Kind of problem to the first (row, column, value) of it."""
    empty_cells: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Rows without a value other than 0; only with ``counts``."""

    def _note(self, kind: str, piece: _Piece, bad: np.ndarray) -> int:
        places = np.flatnonzero(bad)
        known = self.examples.setdefault(kind, [])
        first = places[: _N_EXAMPLES - len(known)]
        rows, columns = piece.locate(first)
        known.extend((int(r), int(c), float(v)) for r, c, v in zip(rows, columns, piece.values[first], strict=True))
        return len(places)


def _dense_pieces(x: np.ndarray | h5py.Dataset, max_values: int) -> Iterator[_Piece]:
    n_cells, n_genes = x.shape
    step = max(1, max_values // max(n_genes, 1))
    for start in range(0, n_cells, step):
        values = np.asarray(x[start : start + step]).ravel()

        def locate(k, start=start):
            return start + k // n_genes, k % n_genes

        def rows_with(mask, start=start):
            return start + np.flatnonzero(mask.reshape(-1, n_genes).any(axis=1))

        yield _Piece(values, locate, rows_with)


def _compressed_piece(values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, start: int, by_row: bool) -> _Piece:
    """Piece of consecutive rows (CSR) or columns (CSC); ``indptr`` counts from 0 and ``start`` is the first of them."""

    def locate(k):
        major, minor = start + np.searchsorted(indptr, k, side="right") - 1, indices[k]
        return (major, minor) if by_row else (minor, major)

    def rows_with(mask):
        if not by_row:
            return np.unique(indices[mask])
        before = np.concatenate([[0], np.cumsum(mask)])
        return start + np.flatnonzero(before[indptr[1:]] > before[indptr[:-1]])

    return _Piece(values, locate, rows_with)


def _sparse_pieces(x, max_values: int) -> Iterator[_Piece]:
    by_row, indptr, start, n_major = x.format == "csr", x.indptr, 0, len(x.indptr) - 1
    while start < n_major:
        stop = int(np.searchsorted(indptr, indptr[start] + max_values, side="right")) - 1
        stop = min(max(stop, start + 1), n_major)
        part = slice(int(indptr[start]), int(indptr[stop]))
        yield _compressed_piece(x.data[part], x.indices[part], indptr[start : stop + 1] - indptr[start], start, by_row)
        start = stop


def _backed_pieces(x: CSRDataset, max_values: int) -> Iterator[_Piece]:
    step = max(1, 4 * max_values // max(x.shape[1], 1))
    for start in range(0, x.shape[0], step):
        block = x[start : start + step]
        yield _compressed_piece(block.data, block.indices, block.indptr, start, by_row=True)


def _pieces(x, max_values: int) -> Iterator[_Piece]:
    if issparse(x):
        return _sparse_pieces(x, max_values)
    if isinstance(x, CSRDataset):
        return _backed_pieces(x, max_values)
    return _dense_pieces(x, max_values)


def why_unreadable(x: object, place: str) -> str | None:
    """Why a matrix cannot be read cell by cell, and the way out; ``None`` if it can."""
    if isinstance(x, CSCDataset):
        return (
            f"{place} is on disk by column (backed CSC), and reading one cell means reading it all. Load it and sort it by "
            f"row: adata = adata.to_memory(); {place} = scipy.sparse.csr_matrix({place})."
        )
    if issparse(x):
        fits, kind = x.format in ("csr", "csc"), x.format
    else:
        fits, kind = isinstance(x, np.ndarray | h5py.Dataset | CSRDataset), f"{type(x).__module__}.{type(x).__name__}"
    if not fits:
        return f"{place} is a matrix of type {kind}: convert it with {place} = scipy.sparse.csr_matrix({place})."
    if np.dtype(x.dtype).kind not in "fiub":
        return (
            f"{place} holds values of type {x.dtype}, no numbers: convert it, e.g. {place} = {place}.astype('float32')."
        )
    return None


def scan_matrix(x, counts: bool = False, max_values: int = _MAX_VALUES) -> MatrixScan:
    """Look for values that are not finite and, with ``counts``, for what no matrix of counts holds.

    Parameters
    ----------
    x
        (n_cells, n_genes) CSR or CSC matrix or array, dense array, or a backed one (dense or CSR).
    counts
        Also look for negative and fractional values and for cells without a count.
    max_values
        Number of values that are looked at in one go.

    Returns
    -------
    :class:`MatrixScan`.
    """
    scan = MatrixScan(n_cells=x.shape[0], counts=counts)
    has_count = np.zeros(x.shape[0], dtype=bool)
    fractional = np.dtype(x.dtype).kind == "f"
    for piece in _pieces(x, max_values):
        values = piece.values
        if not len(values):
            continue
        # a sum is finite unless a value is not: the mask is made only when it is needed
        with np.errstate(over="ignore", invalid="ignore"):
            clean = not fractional or np.isfinite(values.sum(dtype=np.float64))
        if not clean:
            scan.n_not_finite += scan._note("not_finite", piece, ~np.isfinite(values))
        if counts:
            if not clean or values.min() < 0:
                scan.n_negative += scan._note("negative", piece, values < 0)
            if fractional:
                with np.errstate(invalid="ignore"):
                    broken = np.isfinite(values) & (np.rint(values) != values)
                if broken.any():
                    scan.n_fractional += scan._note("fractional", piece, broken)
            has_count[piece.rows_with(values != 0)] = True
    if counts:
        scan.empty_cells = np.flatnonzero(~has_count)
    return scan
