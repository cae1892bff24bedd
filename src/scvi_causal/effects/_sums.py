"""Sums over cells that every estimator is made of: nothing of the size of the cells is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse

Y, F, H = range(3)
"""Observed outcome, prediction under the target, prediction under the contrast."""
_ROUNDING = 1e-12  # of a sum of squares: below it, a variance is what float64 leaves of equal numbers


@dataclass
class ArmSums:
    """Sums over the cells of one arm of a group, of (outcome, prediction under the target, prediction under the contrast).

    Parameters
    ----------
    n
        (clusters,) number of cells.
    first
        (clusters, 3, genes) sums.
    second
        (3, 3, genes) sums of products, over all clusters.
    nonzero
        (genes,) number of cells whose outcome is not zero.
    """

    n: np.ndarray
    first: np.ndarray
    second: np.ndarray
    nonzero: np.ndarray

    @classmethod
    def empty(cls, n_clusters: int, n_genes: int) -> ArmSums:
        """No cell yet."""
        return cls(
            np.zeros(n_clusters), np.zeros((n_clusters, 3, n_genes)), np.zeros((3, 3, n_genes)), np.zeros(n_genes)
        )

    def add(self, cluster: np.ndarray, y: np.ndarray | None, f: np.ndarray | None, h: np.ndarray | None) -> None:
        """Add cells: (cells,) codes of clusters, and (cells, genes) values or ``None`` for zeros."""
        self.n += np.bincount(cluster, minlength=len(self.n))
        values = {i: np.asarray(x, dtype=np.float64) for i, x in ((Y, y), (F, f), (H, h)) if x is not None}
        if y is not None:
            self.nonzero += np.count_nonzero(y, axis=0)
        for i, x in values.items():
            self.first[:, i] += sum_by(cluster, x, len(self.n))
            for j, other in values.items():
                if j >= i:
                    self.second[i, j] += np.einsum("kg,kg->g", x, other)
                    self.second[j, i] = self.second[i, j]

    def minus(self, *others: ArmSums) -> ArmSums:
        """Sums over the cells that are in none of the others."""
        rest = ArmSums(self.n.copy(), self.first.copy(), self.second.copy(), self.nonzero.copy())
        for other in others:
            rest.n -= other.n
            rest.first -= other.first
            rest.second -= other.second
            rest.nonzero -= other.nonzero
        return rest

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(round(self.n.sum()))

    @property
    def mean(self) -> np.ndarray:
        """(3, genes) means; zero without cells."""
        return self.first.sum(0) / max(self.n_cells, 1)

    @property
    def scatter(self) -> np.ndarray:
        """(3, 3, genes) sums of products of deviations from the means; what does not vary has exactly zero."""
        mean = self.mean
        scatter = self.second - self.n_cells * mean[:, None] * mean[None]
        fixed = np.stack([scatter[i, i] <= _ROUNDING * self.second[i, i] for i in range(3)])
        scatter[fixed[:, None] | fixed[None]] = 0.0
        return scatter


class Arms(NamedTuple):
    """The cells of a group, taken apart by what they received.

    Parameters
    ----------
    target
        Cells with the perturbation.
    contrast
        Cells with what it is held against; ``None`` if it is held against nothing.
    rest
        All others.
    """

    target: ArmSums
    contrast: ArmSums | None
    rest: ArmSums

    @property
    def present(self) -> list[ArmSums]:
        """The two or three arms."""
        return [arm for arm in self if arm is not None]

    @property
    def n_cells(self) -> int:
        """Number of cells of the group."""
        return sum(arm.n_cells for arm in self.present)

    @property
    def predicted_mean(self) -> np.ndarray:
        """(2, genes) mean prediction over all cells of the group, under the target and under the contrast."""
        total = sum(arm.first[:, F:].sum(0) for arm in self.present)
        return total / max(self.n_cells, 1)


def sum_by(code: np.ndarray, x, n_codes: int):
    """(n_codes, columns) sums of rows of a dense or sparse ``x`` by code."""
    if n_codes == 1:
        return np.asarray(x.sum(0), dtype=np.float64).reshape(1, -1)
    n = len(code)
    total = sparse.csr_matrix((np.ones(n), (code, np.arange(n))), shape=(n_codes, n)) @ x
    return total.toarray() if sparse.issparse(total) else total
