"""One walk over the cells of a group, after which only sums are left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from ._sums import Arms, ArmSums, F, H, Y, sum_by

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 2_048
"""Cells of which outcomes and predictions are dense at a time."""
_BYTES = 2**28  # of the sums of the targets that share a walk

Reader = Callable[[np.ndarray], "np.ndarray | sparse.spmatrix"]
"""Rows in, their (rows, genes) outcomes out."""
Predictor = Callable[[np.ndarray, list[str]], Iterable[np.ndarray]]
"""Rows and treatments in, one (rows, genes) prediction per treatment out, in their order."""


@dataclass(frozen=True)
class StratumPredictions:
    """Predictions that are the same for all cells of a stratum, as of a model that does not look at the cell itself.

    Parameters
    ----------
    stratum
        (cells,) code of the stratum of each cell, from 0 on.
    means
        For each treatment the (strata, genes) predicted means.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.effects import StratumPredictions
    >>> predicted = StratumPredictions(np.array([0, 0, 1]), {"A": np.array([[1.0], [2.0]])})
    >>> [block.ravel().tolist() for block in predicted(np.array([0, 2]), ["A"])]
    [[1.0, 2.0]]
    """

    stratum: np.ndarray
    means: Mapping[str, np.ndarray]

    def __call__(self, rows: np.ndarray, treatments: Sequence[str]) -> Iterator[np.ndarray]:
        """One (rows, genes) array per treatment."""
        for name in treatments:
            yield np.asarray(self.means[name])[self.stratum[rows]]


@dataclass(frozen=True)
class Cells:
    """What is known of the cells before anything is read.

    Parameters
    ----------
    treatment
        (cells,) labels.
    cluster
        (cells,) codes, zeros if there are no clusters.
    n_clusters
        Number of codes.
    """

    treatment: np.ndarray
    cluster: np.ndarray
    n_clusters: int


def collect(
    read: Reader,
    predict: Predictor | None,
    cells: Cells,
    rows: np.ndarray,
    targets: Sequence[str],
    contrast: str | None,
    n_genes: int,
) -> Iterator[tuple[str, Arms]]:
    """Sums of one group of cells for one target after the other.

    Parameters
    ----------
    read, predict
        Outcomes, and predictions or ``None``.
    cells
        Treatments and clusters of all cells.
    rows
        Cells of the group.
    targets, contrast
        Treatments to compare.
    n_genes
        Number of genes.
    """
    if predict is None:
        predict = StratumPredictions(
            np.zeros(len(cells.treatment), dtype=np.int64), _Everywhere(np.zeros((1, n_genes)))
        )
    if isinstance(predict, StratumPredictions):
        yield from _by_stratum(read, predict, cells, rows, targets, contrast, n_genes)
        return
    per_target = 4 * (3 * cells.n_clusters + 9) * n_genes * 8
    step = max(1, _BYTES // per_target)
    for start in range(0, len(targets), step):
        some = list(targets[start : start + step])
        yield from zip(some, _by_cell(read, predict, cells, rows, some, contrast, n_genes), strict=True)


class _Everywhere(dict):
    """The same predictions for every treatment."""

    def __init__(self, value: np.ndarray):
        super().__init__()
        self.value = value

    def __missing__(self, key: str) -> np.ndarray:
        return self.value


def dense(x) -> np.ndarray:
    """A piece as a dense float64 array."""
    return np.asarray(x.toarray() if sparse.issparse(x) else x, dtype=np.float64)


def _by_cell(read, predict, cells: Cells, rows, targets, contrast, n_genes) -> list[Arms]:
    """Predictions differ from cell to cell: every chunk is predicted under every target."""
    empty = lambda: ArmSums.empty(cells.n_clusters, n_genes)
    treated, compared, everything = ([empty() for _ in targets] for _ in range(3))
    asked = [*targets] if contrast is None else [contrast, *targets]
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        labels, cluster = cells.treatment[part], cells.cluster[part]
        predictions = iter(predict(part, asked))
        h = None if contrast is None else _checked(next(predictions), len(part), n_genes, contrast)
        known = np.flatnonzero(np.isin(labels, asked))
        y = np.zeros((len(part), n_genes))
        if len(known):
            y[known] = dense(read(part[known]))
        for t, name in enumerate(targets):
            f = _checked(next(predictions), len(part), n_genes, name)
            everything[t].add(cluster, None, f, h)
            for arm, label in ((treated[t], name), (compared[t], contrast)):
                here = np.flatnonzero(labels == label) if label is not None else ()
                if len(here):
                    arm.add(cluster[here], y[here], f[here], None if h is None else h[here])
    found = []
    for target, control, total in zip(treated, compared, everything, strict=True):
        # the rest has predictions only, and so has no sums with outcomes in them
        rest = total.minus(*(_without_outcomes(arm) for arm in (target, control)))
        found.append(Arms(target, None if contrast is None else control, rest))
    return found


def _without_outcomes(arm: ArmSums) -> ArmSums:
    first, second = arm.first.copy(), arm.second.copy()
    first[:, Y], second[Y], second[:, Y] = 0.0, 0.0, 0.0
    return ArmSums(arm.n, first, second)


def _checked(x, n_rows: int, n_genes: int, name: str) -> np.ndarray:
    x = dense(x)
    if x.shape != (n_rows, n_genes):
        raise ValueError(f"The prediction under {name!r} has the shape {x.shape}, expected {(n_rows, n_genes)}.")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} predicted values under {name!r} are NaN or infinite.")
    return x


def _by_stratum(read, predict, cells: Cells, rows, targets, contrast, n_genes) -> Iterator[tuple[str, Arms]]:
    """Predictions are the same within strata: only cells of the two arms are read, and predictions are counted."""
    n_strata = int(predict.stratum[rows].max()) + 1
    block = cells.cluster[rows] * n_strata + predict.stratum[rows]
    labels = cells.treatment[rows]

    def outcomes(label: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Blocks with cells of a treatment, their sums, and the sum of squares over all."""
        here = np.flatnonzero(labels == label)
        blocks, code = np.unique(block[here], return_inverse=True)
        total, squares = np.zeros((len(blocks), n_genes)), np.zeros(n_genes)
        for start in range(0, len(here), CHUNK):
            piece = slice(start, start + CHUNK)
            y = read(rows[here[piece]])
            y = y.astype(np.float64) if sparse.issparse(y) else dense(y)
            total += sum_by(code[piece], y, len(blocks))
            squares += np.asarray((y.multiply(y) if sparse.issparse(y) else y * y).sum(0)).ravel()
        return blocks, total, squares

    def arm(mask: np.ndarray, f: np.ndarray, h: np.ndarray | None, found=None) -> ArmSums:
        blocks, n = np.unique(block[mask], return_counts=True)
        return _from_blocks(blocks // n_strata, blocks % n_strata, n, f, h, cells.n_clusters, found)

    control = None if contrast is None else outcomes(contrast)
    h = None if contrast is None else np.asarray(predict.means[contrast], dtype=np.float64)
    for name in targets:
        f = np.asarray(predict.means[name], dtype=np.float64)
        treated, compared = labels == name, labels == contrast
        against = None if contrast is None else arm(compared, f, h, control)
        rest = arm(~treated & ~compared if contrast is not None else ~treated, f, h)
        yield name, Arms(arm(treated, f, h, outcomes(name)), against, rest)


def _from_blocks(cluster, stratum, n, f, h, n_clusters, outcomes) -> ArmSums:
    """Sums of an arm from sums over blocks of cells of one cluster and stratum."""
    sums = ArmSums.empty(n_clusters, f.shape[1])
    sums.n += np.bincount(cluster, weights=n, minlength=n_clusters)
    if not len(n):
        return sums
    values = {F: f[stratum]} | ({} if h is None else {H: h[stratum]})
    for i, x in values.items():
        sums.first[:, i] = sum_by(cluster, n[:, None] * x, n_clusters)
        for j, other in values.items():
            sums.second[i, j] = (n[:, None] * x * other).sum(0)
    if outcomes is not None:
        _, total, squares = outcomes
        sums.first[:, Y] = sum_by(cluster, total, n_clusters)
        sums.second[Y, Y] = squares
        for i, x in values.items():
            sums.second[Y, i] = sums.second[i, Y] = (total * x).sum(0)
    return sums
