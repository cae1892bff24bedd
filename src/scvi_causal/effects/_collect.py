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
        (cells,) codes of what they received.
    names
        Code of each treatment.
    cluster
        (cells,) codes, zeros if there are no clusters.
    n_clusters
        Number of codes.
    """

    treatment: np.ndarray
    names: Mapping[str, int]
    cluster: np.ndarray
    n_clusters: int

    def code(self, name: str | None) -> int:
        """Code of a treatment; -1 for one that no cell received, or for no contrast."""
        return self.names.get(name, -1)


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
    codes = [cells.code(name) for name in targets]
    reference = cells.code(contrast)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        labels, cluster = cells.treatment[part], cells.cluster[part]
        predictions = iter(predict(part, asked))
        h = None if contrast is None else _checked(next(predictions), len(part), n_genes, contrast)
        known = np.flatnonzero(np.isin(labels, [*codes, reference]))
        y = np.zeros((len(part), n_genes))
        if len(known):
            y[known] = dense(read(part[known]))
        for t, name in enumerate(targets):
            f = _checked(next(predictions), len(part), n_genes, name)
            everything[t].add(cluster, None, f, h)
            for arm, code in ((treated[t], codes[t]), (compared[t], reference)):
                here = np.flatnonzero(labels == code)
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
    return ArmSums(arm.n, first, second, np.zeros_like(arm.nonzero))


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
    block, labels = cells.cluster[rows] * n_strata + predict.stratum[rows], cells.treatment[rows]
    n_blocks = cells.n_clusters * n_strata

    def outcomes(name: str | None) -> _Outcomes:
        here = np.flatnonzero(labels == cells.code(name))
        found = _Outcomes(np.bincount(block[here], minlength=n_blocks), n_genes)
        code = (np.cumsum(found.n > 0) - 1)[block[here]]
        for start in range(0, len(here), CHUNK):
            piece = slice(start, start + CHUNK)
            found.add(code[piece], read(rows[here[piece]]))
        return found

    everything = np.bincount(block, minlength=n_blocks)
    control = outcomes(contrast)
    h = None if contrast is None else np.asarray(predict.means[contrast], dtype=np.float64)
    for name in targets:
        f, treated = np.asarray(predict.means[name], dtype=np.float64), outcomes(name)
        rest = _Outcomes(everything - treated.n - control.n, n_genes)
        arms = [_from_blocks(found, n_strata, cells.n_clusters, f, h) for found in (treated, control, rest)]
        yield name, Arms(arms[0], None if contrast is None else arms[1], arms[2])


class _Outcomes:
    """Sums of outcomes over blocks of cells of one cluster and stratum, for blocks that have any."""

    def __init__(self, n: np.ndarray, n_genes: int):
        self.n, self.n_genes = n, n_genes
        self.total: np.ndarray | None = None
        self.squares, self.nonzero = np.zeros(n_genes), np.zeros(n_genes)

    def add(self, code: np.ndarray, y) -> None:
        """Add cells by the place of their block among those that have any."""
        if self.total is None:
            self.total = np.zeros((int((self.n > 0).sum()), self.n_genes))
        y = y.astype(np.float64) if sparse.issparse(y) else dense(y)
        self.total += sum_by(code, y, len(self.total))
        self.nonzero += np.asarray((y != 0).sum(0)).ravel()
        self.squares += np.asarray((y.multiply(y) if sparse.issparse(y) else y * y).sum(0)).ravel()


def _from_blocks(found: _Outcomes, n_strata: int, n_clusters: int, f: np.ndarray, h: np.ndarray | None) -> ArmSums:
    """Sums of an arm from sums over its blocks."""
    sums = ArmSums.empty(n_clusters, f.shape[1])
    blocks = np.flatnonzero(found.n)
    cluster, stratum, n = blocks // n_strata, blocks % n_strata, found.n[blocks].astype(np.float64)
    sums.n += np.bincount(cluster, weights=n, minlength=n_clusters)
    if not len(n):
        return sums
    values = {F: f[stratum]} | ({} if h is None else {H: h[stratum]})
    for i, x in values.items():
        sums.first[:, i] = sum_by(cluster, n[:, None] * x, n_clusters)
        for j, other in values.items():
            sums.second[i, j] = (n[:, None] * x * other).sum(0)
    if found.total is not None:
        sums.first[:, Y] = sum_by(cluster, found.total, n_clusters)
        sums.second[Y, Y], sums.nonzero = found.squares, found.nonzero
        for i, x in values.items():
            sums.second[Y, i] = sums.second[i, Y] = (found.total * x).sum(0)
    return sums
