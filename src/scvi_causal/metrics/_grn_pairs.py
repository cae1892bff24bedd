"""What every perturbation does to every gene: the pairs on which a predicted network can be tested.

The controls of a gene are sorted once and the cells of all perturbations are looked up in them: both statistics follow from the
places that are found. The cost grows with the number of cells, not with cells times perturbations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from ._arrays import as_cells
from ._ranks import gene_blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_RANKINGS = ("wasserstein", "excess", "lfc", "statistic")


def pair_effects(
    cells,
    labels: Sequence[str],
    genes: Sequence[str],
    *,
    control_category: str | Iterable[str] = "control",
    separator: str | None = "+",
    min_cells: int = 10,
) -> pd.DataFrame:
    r"""Effect of each perturbed gene on each other gene: the 1-Wasserstein distance and a rank-sum test against control.

    An edge ``source -> target`` of a network claims that perturbing the source changes the target, directly or not. Every pair of
    a perturbed source and a measured target can be looked at; this table holds them all, and what the cells say.

    Parameters
    ----------
    cells
        (cells, genes) log1p-normalised, dense or sparse; held-out cells to judge a network by, training cells to rank pairs by
        (:func:`rank_by_effect`).
    labels
        (cells,) perturbation of each cell. Combinations say nothing about one source and are left out.
    genes
        (genes,) names, spelled as the labels are.
    control_category
        Label, or labels, of the control cells.
    separator
        What joins the tokens of a combination; ``None`` takes every label as one token.
    min_cells
        Perturbations (and controls) of fewer cells are left out (refused).

    Returns
    -------
    DataFrame, one row per pair without self-loops (the knock-down of a gene is no edge): ``source`` and ``target`` (categorical),
    ``n_cells`` of the source, and

    ``wasserstein``
        distance of the perturbed from the control cells, as :func:`wasserstein_genes`, in units of the expression;
    ``wasserstein_null``
        what it is on average without any effect, :math:`\sqrt{2/\pi}\,\sqrt{1/n + 1/m} \int \sqrt{F(1-F)}` with ``n`` and ``m``
        cells and the distribution ``F`` of the controls: it is larger for variable genes and for perturbations of few cells, and
        rankings by the distance alone prefer these;
    ``lfc``
        difference of the means of log1p expression;
    ``statistic``, ``pvalue``
        z of the two-sided Mann-Whitney test, with corrections for ties and continuity, positive where the target goes up;
    ``padj``
        adjusted over all pairs by Benjamini and Hochberg.

    Raises
    ------
    ValueError
        If lengths do not fit, gene names repeat, or there are too few control cells or no perturbation is left.

    References
    ----------
    Chevalley et al., *CausalBench*, 2022, for both statistics; Bobkov and Ledoux, *One-dimensional empirical measures, order
    statistics, and Kantorovich transport distances*, 2019, for the integral.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import pair_effects
    >>> labels = np.repeat(["control", "A"], 10)
    >>> cells = np.outer(labels == "A", [-3.0, 2.0, 0.0])
    >>> pair_effects(cells, labels, ["A", "B", "C"])[["source", "target", "n_cells", "wasserstein"]]
      source target  n_cells  wasserstein
    0      A      B       10          2.0
    1      A      C       10          0.0
    """
    x = as_cells(cells)
    labels, names = np.asarray(labels, dtype=object).astype(str), [str(g) for g in genes]
    _check_shapes(x, labels, names)
    controls = [control_category] if isinstance(control_category, str) else list(control_category)
    is_control = np.isin(labels, controls)
    rows, sources = _rows_by_source(labels, is_control, separator, min_cells, controls)
    found = _compare(x[np.flatnonzero(is_control)], x[np.concatenate(rows)], [len(r) for r in rows])
    return _as_table(found, sources, names, [len(r) for r in rows])


def rank_by_effect(
    pairs: pd.DataFrame, by: Literal["wasserstein", "excess", "lfc", "statistic"] = "wasserstein"
) -> pd.DataFrame:
    """Edges ranked by the size of the effect, the baseline of every network that was learned from the same cells.

    A network is worth its name if it says more than "perturbing this changes that". Make this one from the *training* cells.

    Parameters
    ----------
    pairs
        Table of :func:`pair_effects`.
    by
        ``"wasserstein"`` distance (what networks are often judged by), its ``"excess"`` over what noise alone gives, ``"lfc"``, or
        the ``"statistic"`` of the test.

    Returns
    -------
    DataFrame ``source, target, weight``, the largest effect first; ``weight`` has the sign of the change of the target.

    Raises
    ------
    ValueError
        If ``by`` is unknown or ``pairs`` is not such a table.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal.metrics import rank_by_effect
    >>> pairs = {"source": ["A", "A"], "target": ["B", "C"], "wasserstein": [0.1, 0.5], "wasserstein_null": [0.1, 0.1]}
    >>> rank_by_effect(pd.DataFrame(pairs | {"lfc": [0.1, -0.5], "statistic": [0.3, -4.0]}))
      source target  weight
    0      A      C    -0.5
    1      A      B     0.1
    """
    if by not in _RANKINGS:
        raise ValueError(f"by={by!r} is not one of {', '.join(map(repr, _RANKINGS))}.")
    check_pairs(pairs, "pairs")
    size = pairs["wasserstein"] - pairs["wasserstein_null"] if by == "excess" else pairs[by].abs()
    # an effect below its noise is no effect; the sign is free for the direction
    weight = size.clip(lower=0).to_numpy() * np.where(pairs["lfc"].to_numpy() < 0, -1.0, 1.0)
    edges = pd.DataFrame(
        {"source": pairs["source"].astype(str), "target": pairs["target"].astype(str), "weight": weight}
    )
    return edges.iloc[np.argsort(-np.abs(weight), kind="stable")].reset_index(drop=True)


def check_pairs(pairs: object, name: str) -> pd.DataFrame:
    """Raise unless ``pairs`` has the columns of :func:`pair_effects` that rankings and scores look at."""
    needed = ["source", "target", "wasserstein", "wasserstein_null", "lfc", "statistic"]
    if not isinstance(pairs, pd.DataFrame) or not set(needed) <= set(pairs.columns):
        found = list(pairs.columns) if isinstance(pairs, pd.DataFrame) else type(pairs).__name__
        raise ValueError(f"{name}: expected a table of scvi_causal.metrics.pair_effects, got {found}.")
    if not len(pairs):
        raise ValueError(f"{name}: there is no pair in the table.")
    return pairs


# ---------------------------------------------------------------------- arguments


def _check_shapes(x, labels: np.ndarray, names: list[str]) -> None:
    if x.shape != (labels.size, len(names)):
        raise ValueError(
            f"cells of shape {x.shape} do not fit {labels.size:,} labels and {len(names):,} genes: one label per row, one name "
            "per column."
        )
    if len(set(names)) < len(names):
        doubled = pd.Index(names)[pd.Index(names).duplicated()].unique()[:5]
        raise ValueError(f"genes repeats names, e.g. {list(doubled)}: make them unique.")


def _rows_by_source(
    labels, is_control, separator: str | None, min_cells: int, controls: list[str]
) -> tuple[list[np.ndarray], list[str]]:
    """Positions of the cells of each source, and the sources in alphabetical order."""
    if is_control.sum() < max(min_cells, 1):
        found = ", ".join(map(repr, pd.Series(labels).value_counts().index[:5]))
        raise ValueError(
            f"labels: {int(is_control.sum())} cells are labelled {controls}, at least {max(min_cells, 1)} control cells are needed. "
            f"The most frequent labels are {found}."
        )
    rows = pd.Series(np.arange(labels.size))[~is_control].groupby(labels[~is_control]).apply(np.asarray)
    kept = {
        name: cells
        for name, cells in rows.items()
        if len(cells) >= max(min_cells, 1) and not (separator and separator in name)
    }
    if not kept:
        raise ValueError(
            f"labels: no single perturbation has {max(min_cells, 1)} cells; combinations are left out, and so are smaller ones."
        )
    return list(kept.values()), list(kept)


def _as_table(found: _Found, sources: list[str], names: list[str], n_cells: list[int]) -> pd.DataFrame:
    """One row per pair, without self-loops."""
    n_sources, n_genes = len(sources), len(names)
    source, target = np.repeat(np.arange(n_sources), n_genes), np.tile(np.arange(n_genes), n_sources)
    own = pd.Index(names).get_indexer(sources)
    keep = target != own[source]
    table = pd.DataFrame(
        {
            "source": pd.Categorical.from_codes(source[keep], sources),
            "target": pd.Categorical.from_codes(target[keep], names),
            "n_cells": np.asarray(n_cells)[source[keep]],
        }
    )
    for name, values in zip(_Found._fields, found, strict=True):
        table[name] = values.ravel()[keep]
    table["pvalue"] = 2 * stats.norm.sf(table["statistic"].abs())
    table["padj"] = stats.false_discovery_control(table["pvalue"]) if len(table) else 1.0
    return table


# ---------------------------------------------------------------------- statistics


class _Found(NamedTuple):
    """(sources, genes) each."""

    wasserstein: np.ndarray
    wasserstein_null: np.ndarray
    lfc: np.ndarray
    statistic: np.ndarray


def _compare(controls, cells, sizes: list[int]) -> _Found:
    """Compare consecutive groups of cells with the controls, gene by gene."""
    stops = np.cumsum(sizes)
    found = _Found(*(np.zeros((len(sizes), cells.shape[1])) for _ in _Found._fields))
    for genes, (c, t) in gene_blocks(controls, cells, share=1 / 8):  # the places of cells take several times the memory
        c.sort(axis=1)
        for start, stop in zip(stops - sizes, stops, strict=True):
            t[:, start:stop].sort(axis=1)
        reference = _SortedControls(c)
        below, upto = reference.places(t)
        for k, (start, stop) in enumerate(zip(stops - sizes, stops, strict=True)):
            group = slice(start, stop)
            values = t[:, group].astype(np.float64)
            found.wasserstein[k, genes] = reference.wasserstein(values, upto[:, group])
            found.wasserstein_null[k, genes] = reference.null(stop - start)
            found.lfc[k, genes] = values.mean(axis=1) - reference.mean
            found.statistic[k, genes] = reference.rank_sum(values, below[:, group], upto[:, group])
    return found


class _SortedControls:
    """The controls of a block of genes, (genes, m) in ascending order, and what a group of cells is compared by."""

    def __init__(self, c: np.ndarray):
        self.sorted, self.m = c, c.shape[1]
        self.sums = np.zeros((c.shape[0], self.m + 1))
        np.cumsum(c, axis=1, dtype=np.float64, out=self.sums[:, 1:])
        self.mean = self.sums[:, -1] / self.m
        share = np.arange(1, self.m) / self.m
        steps = np.diff(c.astype(np.float64), axis=1)
        self.root = steps @ np.sqrt(share * (1 - share))  # integral of sqrt(F (1 - F))
        run = np.concatenate([np.ones((len(c), 1), bool), steps > 0], axis=1)
        first = np.flatnonzero(run)
        size = np.diff(np.append(first, run.size)).astype(np.float64)
        self.ties = np.bincount(first // self.m, weights=size**3 - size, minlength=len(c))

    def places(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(genes, cells) numbers of controls below each value, and not above it."""
        below, upto = np.empty(t.shape, dtype=np.int64), np.empty(t.shape, dtype=np.int64)
        for gene, controls in enumerate(self.sorted):
            below[gene] = np.searchsorted(controls, t[gene], side="left")
            upto[gene] = np.searchsorted(controls, t[gene], side="right")
        return below, upto

    def wasserstein(self, values: np.ndarray, upto: np.ndarray) -> np.ndarray:
        """Integral of the difference of the quantile functions.

        That of the cells has the value ``values[i]`` between the levels ``i / n`` and ``(i + 1) / n``; that of the controls crosses
        it at the level ``upto[i] / m``, or does not. Between levels their integral is a difference of ``sums``.
        """
        n = values.shape[1]
        whole, rest = np.divmod(np.arange(n + 1) * self.m, n)
        # levels in units of controls, and the integral of their quantile function up to them
        level = whole + rest / n
        area = self.sums[:, whole] + rest / n * self.sorted[:, np.minimum(whole, self.m - 1)]
        crossing = np.clip(upto, level[:-1], level[1:])
        at_crossing = np.take_along_axis(self.sums, upto, axis=1)
        at_crossing = np.where(upto <= level[:-1], area[:, :-1], np.where(upto >= level[1:], area[:, 1:], at_crossing))
        pieces = values * (2 * crossing - level[:-1] - level[1:]) + area[:, :-1] + area[:, 1:] - 2 * at_crossing
        return np.maximum(pieces.sum(axis=1), 0.0) / self.m

    def null(self, n: int) -> np.ndarray:
        """Mean Wasserstein distance of ``n`` cells that are no different, by the normal approximation of ``F_n - F_m``."""
        return np.sqrt(2 / np.pi * (1 / n + 1 / self.m)) * self.root

    def rank_sum(self, values: np.ndarray, below: np.ndarray, upto: np.ndarray) -> np.ndarray:
        """(genes,) z of the Mann-Whitney test; 0 where all values are equal. As ``rank_sum_test``, without ranks."""
        n, m = values.shape[1], self.m
        u = (below + upto).sum(axis=1) / 2
        same = (upto - below).astype(np.float64)
        own = _tied_with(values)
        # (a + b)^3 - (a + b) over values that a controls and b cells share, as a sum over controls and one over cells
        ties = self.ties + (3 * same**2 + 3 * same * own + own**2 - 1).sum(axis=1)
        spread = np.sqrt(np.maximum(n * m / 12 * ((n + m + 1) - ties / ((n + m) * (n + m - 1))), 0.0))
        excess = u - n * m / 2
        excess = np.sign(excess) * np.maximum(np.abs(excess) - 0.5, 0.0)
        # the tie correction of equal values cancels up to rounding
        return np.divide(excess, spread, out=np.zeros(len(u)), where=spread > 1e-6 * n * m)


def _tied_with(values: np.ndarray) -> np.ndarray:
    """(genes, cells) number of cells, itself included, with the value of a cell; rows are in ascending order."""
    run = np.concatenate([np.ones((len(values), 1), bool), np.diff(values, axis=1) > 0], axis=1)
    first = np.flatnonzero(run)
    size = np.diff(np.append(first, run.size))
    return np.repeat(size, size).reshape(values.shape).astype(np.float64)
