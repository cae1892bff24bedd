"""What every metric needs from a matrix of cells: means, variances and blocks, with sparse input kept sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Iterator


def as_cells(x, name: str = "cells"):
    """Return ``x`` as a (cells, genes) CSR matrix or ndarray without densifying it."""
    if sp.issparse(x):
        return x if x.format == "csr" else x.tocsr()
    x = np.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"{name}: expected a (cells, genes) matrix, got an array of shape {x.shape}.")
    return x


def is_profile(x) -> bool:
    """Whether ``x`` is one profile (genes,) rather than a population of cells (cells, genes)."""
    return not sp.issparse(x) and np.ndim(x) == 1


def mean_profile(x, name: str = "cells") -> np.ndarray:
    """Mean over cells, in float64; a profile passes through.

    Parameters
    ----------
    x
        (cells, genes), dense or sparse, or one (genes,) profile.
    name
        What to call ``x`` in an error.

    Returns
    -------
    (genes,) float64.

    Raises
    ------
    ValueError
        If there is not a single cell, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import mean_profile
    >>> mean_profile(np.array([[0.0, 1.0], [2.0, 3.0]]))
    array([1., 2.])
    """
    if is_profile(x):
        mean = np.asarray(x, dtype=np.float64)
    else:
        x = as_cells(x, name)
        if x.shape[0] == 0:
            raise ValueError(f"{name}: no cells, so there is no mean profile. Check the mask that selected them.")
        mean = _column_sums(x) / x.shape[0]
    bad = np.flatnonzero(~np.isfinite(mean))
    if bad.size:
        raise ValueError(
            f"{name}: {bad.size} of {mean.size} genes hold NaN or infinite values (first at gene index {bad[0]}). "
            "A prediction that is not finite cannot be scored."
        )
    return mean


def _column_sums(x) -> np.ndarray:
    """Sums over cells, accumulated in float64 (scipy sums float32 matrices in float32, whatever dtype is asked for)."""
    if sp.issparse(x):
        return np.bincount(x.indices, weights=x.data, minlength=x.shape[1])
    return x.sum(axis=0, dtype=np.float64)


def row_blocks(x, size: int = 2048) -> Iterator[tuple[int, np.ndarray]]:
    """Yield ``(start, dense float64 block)`` over the rows of ``x``: never more than ``size`` rows are dense."""
    for start in range(0, x.shape[0], size):
        block = x[start : start + size]
        yield start, np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float64)


def check_same_genes(**arrays) -> int:
    """Return the common number of genes of the arrays given by name; raise if they differ."""
    widths = {name: (len(x) if is_profile(x) else x.shape[1]) for name, x in arrays.items()}
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{name}: {width}" for name, width in widths.items())
        raise ValueError(f"All inputs need the same genes in the same order; got different numbers of genes ({found}).")
    return next(iter(widths.values()))


def subsample_cells(x, max_cells: int | None, rng: np.random.Generator):
    """At most ``max_cells`` rows of ``x``, drawn without replacement, in their original order."""
    if max_cells is None or x.shape[0] <= max_cells:
        return x
    return x[np.sort(rng.choice(x.shape[0], max_cells, replace=False))]


def log1p_normalize(counts, library=None, target_sum: float = 1e4):
    """Return log(1 + counts per ``target_sum`` of the library), the scale on which means, effects and distances are compared.

    Parameters
    ----------
    counts
        (cells, genes) raw counts, dense or sparse. Not changed.
    library
        (cells,) counts of the whole transcriptome of each cell; ``None`` takes the row sums of ``counts``. A panel that
        was cut to few genes needs the full library, or a strong effect on the panel moves every other gene the other way.
    target_sum
        Counts that a cell is scaled to.

    Returns
    -------
    float32, CSR for sparse input and ndarray for dense input.

    Raises
    ------
    ValueError
        If ``library`` has another length than there are cells, or is not positive for a cell that has counts.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import log1p_normalize
    >>> log1p_normalize(np.array([[1.0, 3.0]]), target_sum=4.0).round(3)
    array([[0.693, 1.386]], dtype=float32)
    """
    counts = as_cells(counts, "counts")
    own = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    size = own if library is None else np.asarray(library, dtype=np.float64).ravel()
    if size.shape != own.shape:
        raise ValueError(f"library has {size.size} entries for {own.size} cells.")
    bad = int(((size <= 0) | ~np.isfinite(size))[own != 0].sum())
    if bad:
        raise ValueError(f"library is zero, negative or not finite for {bad} cells that hold counts.")
    with np.errstate(divide="ignore"):
        factor = np.where(size > 0, target_sum / size, 0.0)
    if sp.issparse(counts):
        values = counts.data * np.repeat(factor, np.diff(counts.indptr))
        data = np.log1p(values).astype(np.float32)
        return sp.csr_matrix((data, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
    return np.log1p(counts * factor[:, None]).astype(np.float32)
