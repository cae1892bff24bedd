"""Does a perturbation do anything at all? Populations that cannot be told from control are reported apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ._arrays import as_cells, check_same_genes, mean_profile, subsample_cells

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK_VALUES = 2**21  # of permuted labels, or of dense cells, at a time
_NEAR = 1e-3  # relative: what single precision leaves undecided; its error is about 1e-5


def effect_test(observed, control, *, n_permutations: int = 499, max_cells: int | None = 1000, seed: int = 0) -> float:
    r"""p-value of "this population has the mean of the control cells", from permutations of the labels.

    .. math:: T = \sum_g (b_g - c_g)^2, \qquad p = \frac{1 + \#\{T^* \ge T\}}{1 + \text{permutations}}

    with :math:`T^*` the same after the labels of all cells were shuffled. Exact at any number of cells if cells are exchangeable
    under the null hypothesis: a share of at most 0.05 of the populations without an effect falls below 0.05. Cells of another
    batch than their controls are not exchangeable with them; compare within one. A change of the variance alone is hardly seen.

    Adjust over the perturbations of a screen (:func:`scipy.stats.false_discovery_control`). Those that stay above 0.05 are
    *not shown* to have an effect, which with few cells says little. The smallest p is ``1 / (1 + n_permutations)``: with 499 at
    least one in 25 perturbations needs it to pass Benjamini-Hochberg at 0.05; take more permutations where effects are rare.

    The distance is taken over all genes as they are. In a PCA of 50 components it found the same perturbations of Papalexi,
    Norman and McFaline, over standardised genes fewer.

    Parameters
    ----------
    observed
        (cells, genes) perturbed cells, log1p-normalised, dense or sparse.
    control
        (cells, genes) control cells of the same context; take those that effects are measured against.
    n_permutations
        Shuffled labels.
    max_cells
        Cells drawn at most from each side; ``None`` takes all.
    seed
        Of the permutations and of that draw.

    Returns
    -------
    float in (0, 1].

    Raises
    ------
    ValueError
        If the genes differ, a population is empty or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import effect_test
    >>> observed, control = np.random.default_rng(0).normal(size=(2, 40, 20))
    >>> effect_test(observed + 0.5, control), effect_test(observed, control) > 0.05
    (0.002, True)
    """
    if n_permutations < 1:
        raise ValueError(f"n_permutations: expected at least 1, got {n_permutations}.")
    observed, control = as_cells(observed, "observed"), as_cells(control, "control")
    check_same_genes(observed=observed, control=control)
    rng = np.random.default_rng(seed)
    observed, control = subsample_cells(observed, max_cells, rng), subsample_cells(control, max_cells, rng)
    for name, cells in {"observed": observed, "control": control}.items():
        mean_profile(cells, name)  # refuses what has no mean
    pooled = sp.vstack([observed, control], "csr") if sp.issparse(observed) else np.vstack([observed, _dense(control)])
    n, n_pooled = observed.shape[0], pooled.shape[0]
    labels = (np.arange(n_pooled) < n).astype(np.float32)
    total = np.asarray(pooled.sum(axis=0, dtype=np.float64)).ravel()
    statistic = _statistic(labels[None], pooled, n, total)[0]
    mean = total / n_pooled
    # equal arrangements differ by rounding, of the distance and of the means
    bar, as_large = statistic * (1 - 1e-9) - 1e-24 * mean @ mean, 0
    approximate = _Approximate(pooled, n, mean, n_permutations)
    size = max(1, _BLOCK_VALUES // n_pooled)
    for start in range(0, n_permutations, size):
        drawn = rng.permuted(np.tile(labels, (min(size, n_permutations - start), 1)), axis=1)
        found = approximate(drawn)
        near = np.abs(found - statistic) <= _NEAR * (found + statistic) + 1e-12 * mean @ mean
        as_large += int((found[~near] >= bar).sum())
        if near.any():
            as_large += int((_statistic(drawn[near], pooled, n, total) >= bar).sum())
    return (1 + as_large) / (1 + n_permutations)


def _statistic(labels: np.ndarray, pooled, n: int, total: np.ndarray) -> np.ndarray:
    """(permutations,) squared distance of the means of the labelled cells and of the others."""
    labels = labels.astype(np.float64)
    sums = np.asarray((pooled.T @ labels.T).T if sp.issparse(pooled) else labels @ pooled)
    difference = sums / n - (total - sums) / (pooled.shape[0] - n)
    return np.einsum("ij,ij->i", difference, difference)


class _Approximate:
    r"""The same in single precision, which decides all but the close permutations at a fraction of the cost.

    With centred cells :math:`x_i` it is :math:`(1/n + 1/m)^2 \| \sum_{i \in L} x_i \|^2`; where cells are fewer than genes, from
    their products :math:`x_i^\top x_j`, which are computed once.
    """

    def __init__(self, pooled, n: int, mean: np.ndarray, n_permutations: int):
        n_pooled, n_genes = pooled.shape
        self.pooled, self.mean = pooled, mean
        self.scale = (1 / n + 1 / (n_pooled - n)) ** 2
        self.products = None
        if n_pooled * (n_genes + 2 * n_permutations) < 2 * n_permutations * n_genes:
            self.products = sum(cells @ cells.T for cells in self.blocks())

    def blocks(self) -> Iterator[np.ndarray]:
        """Centred cells, some genes at a time."""
        width = max(64, _BLOCK_VALUES // self.pooled.shape[0])
        for start in range(0, self.pooled.shape[1], width):
            piece = slice(start, start + width)
            yield (_dense(self.pooled[:, piece]) - self.mean[piece]).astype(np.float32)

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """(permutations,) from (permutations, cells) labels."""
        if self.products is not None:
            squares = np.einsum("ij,ij->i", labels @ self.products, labels, dtype=np.float64)
        else:
            squares = 0.0
            for cells in self.blocks():
                sums = labels @ cells
                squares = squares + np.einsum("ij,ij->i", sums, sums)
        return self.scale * squares.astype(np.float64)


def _dense(x) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else x
