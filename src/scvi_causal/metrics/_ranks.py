"""Populations gene by gene: blocks of genes for what needs ranks, and the rank-sum test.

Values are compared in float32, in which expression is kept: the same value in double precision on one side is no other value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from scipy import stats

from ._arrays import as_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = 2_000_000  # values of a dense block: 8 MB


def gene_blocks(*populations, share: float = 1.0) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Yield ``(genes, [(genes, cells) dense float32 array per population])``, copies, contiguous over the cells of a gene.

    Sparse populations are dense one block at a time; ``share`` of the usual size for what needs much more than the block.
    """
    columns = [x.tocsc() if sp.issparse(x) else x for x in (as_cells(p) for p in populations)]
    n_genes = columns[0].shape[1]
    width = max(1, int(share * _BLOCK) // max(1, sum(x.shape[0] for x in columns)))
    for start in range(0, n_genes, width):
        genes = slice(start, min(start + width, n_genes))
        blocks = [x[:, genes] for x in columns]
        # the transpose of a CSC block is CSR: dense at once in the order that is wanted
        yield genes, [np.array(b.T.toarray() if sp.issparse(b) else b.T, np.float32, order="C") for b in blocks]


def rank_sum_test(cells, controls) -> tuple[np.ndarray, np.ndarray]:
    """(genes,) z of the Mann-Whitney U, positive where ``cells`` are higher, and its two-sided p-value.

    Normal approximation with corrections for ties and continuity; z = 0 and p = 1 where all values of a gene are equal.
    """
    n, m = cells.shape[0], controls.shape[0]
    z = np.zeros(cells.shape[1])
    for genes, (x, y) in gene_blocks(cells, controls, share=1 / 8):  # ranking takes ten times the memory
        values = np.concatenate([x, y], axis=1)
        ranks = stats.rankdata(values, axis=1)
        u = ranks[:, :n].sum(axis=1) - n * (n + 1) / 2
        spread = np.sqrt(n * m / 12 * ((n + m + 1) - _tie_term(values) / ((n + m) * (n + m - 1))))
        excess = u - n * m / 2
        excess = np.sign(excess) * np.maximum(np.abs(excess) - 0.5, 0.0)
        np.divide(excess, spread, out=z[genes], where=spread > 0)
    return z, 2 * stats.norm.sf(np.abs(z))


def _tie_term(values: np.ndarray) -> np.ndarray:
    """Sum of ``t^3 - t`` over the groups of ``t`` equal values in each row."""
    ordered = np.sort(values, axis=1)
    starts = np.ones(ordered.shape, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.flatnonzero(starts)
    size = np.diff(np.append(first, ordered.size)).astype(np.float64)
    return np.bincount(first // ordered.shape[1], weights=size**3 - size, minlength=len(ordered))
