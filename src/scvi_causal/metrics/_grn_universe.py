"""Edges as scores of the pairs that can be tested, so that all rankings are judged on the same ones."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ._grn_pairs import check_pairs


class PairUniverse:
    """The pairs of a table, (pairs,) each, and where the edges of a network are among them."""

    def __init__(self, table: pd.DataFrame, alpha: float = 0.05, check: bool = True):
        if check:
            check_pairs(table, "held_out")
        source, target = _categorical(table, "source"), _categorical(table, "target")
        self.sources, self.targets = source.categories, target.categories
        self.source_codes, self._target = source.codes.astype(np.int64), target.codes.astype(np.int64)
        self._row = np.full((len(self.sources), len(self.targets)), -1)
        self._row[self.source_codes, self._target] = np.arange(len(table))
        if check:
            self.wasserstein = table["wasserstein"].to_numpy(dtype=float)
            self.excess = self.wasserstein - table["wasserstein_null"].to_numpy(dtype=float)
            self.has_effect = (table["padj"] < alpha).to_numpy()

    def place(self, edges: pd.DataFrame, score: str | None = None) -> np.ndarray:
        """(pairs,) absolute score of each pair, 0 where it is no edge; 1 for all edges without a score."""
        source, target = names_of(edges, "source"), names_of(edges, "target")
        if (doubled := pd.MultiIndex.from_arrays([source, target]).duplicated()).any():
            raise ValueError(
                f"{int(doubled.sum())} of {len(edges):,} edges are listed twice, e.g. {source[doubled][0]} -> {target[doubled][0]}: keep "
                "one of each, e.g. with scvi_causal.data.grn_from_edges(edges, duplicates='max')."
            )
        size = np.ones(len(edges))
        if score is not None and score in edges:
            size = np.abs(edges[score].to_numpy(dtype=float))
            if np.isnan(size).any():
                raise ValueError(f"{int(np.isnan(size).sum())} of {len(edges):,} edges have no {score!r} (NaN).")
        elif score not in (None, "weight"):
            raise ValueError(f"score={score!r} is no column of the edges; they have {list(edges.columns)}.")
        rows = self._look_up(source, target)
        placed = np.zeros(self.source_codes.size)
        placed[rows[rows >= 0]] = size[rows >= 0]
        return placed

    def _look_up(self, source: pd.Index, target: pd.Index) -> np.ndarray:
        """Row of the table of each edge, -1 for none."""
        s, t = self.sources.get_indexer(source), self.targets.get_indexer(target)
        return np.where((s >= 0) & (t >= 0), self._row[s, t], -1)

    def truth(self, reference: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Masks of the pairs that the reference could hold, and of those that it does."""
        source, target = names_of(reference, "source"), names_of(reference, "target")
        known_source, known_target = self.sources.isin(source), self.targets.isin(target)
        rows = self._look_up(source, target)
        is_true = np.zeros(self.source_codes.size, dtype=bool)
        is_true[rows[rows >= 0]] = True
        return known_source[self.source_codes] & known_target[self._target], is_true

    def reached(self, edges: pd.DataFrame, max_hops: int) -> np.ndarray:
        """(pairs,) whether a path of at most ``max_hops`` edges leads from source to target; edges that cannot be tested lead on."""
        source, target = names_of(edges, "source"), names_of(edges, "target")
        nodes = pd.Index(np.unique(np.concatenate([source, target])))
        shape = (len(nodes), len(nodes))
        step = sp.csr_matrix((np.ones(len(edges)), (nodes.get_indexer(source), nodes.get_indexer(target))), shape=shape)
        start, end = nodes.get_indexer(self.sources), nodes.get_indexer(self.targets)
        path = step[start[start >= 0]]
        reached = path > 0
        for _ in range(max_hops - 1):
            path = (path @ step > 0).astype(float)
            reached = reached + (path > 0)
        table = np.zeros((len(self.sources), len(self.targets)), dtype=bool)
        table[np.ix_(start >= 0, end >= 0)] = reached[:, end[end >= 0]].toarray()
        return table[self.source_codes, self._target]

    def mean(self, weights: np.ndarray, values: np.ndarray) -> float:
        """Mean of (pairs,) values; NaN if nothing has weight."""
        total = weights.sum()
        return float(weights.astype(float) @ values / total) if total > 0 else float("nan")

    def judge(self, ranked: np.ndarray | None, n_edges: int) -> dict[str, float]:
        """Numbers of the first ``n_edges`` pairs of a ranking; ``None`` is a random one."""
        chosen = np.ones(self.source_codes.size) if ranked is None else share_of_first(ranked, n_edges)
        numbers = {"wasserstein": self.wasserstein, "excess": self.excess, "significant": self.has_effect}
        row = {"edges": n_edges if ranked is None else round(chosen.sum())}
        row |= {name: self.mean(chosen, values) for name, values in numbers.items()}
        area = (
            self.has_effect.mean()
            if ranked is None
            else average_precision(keep_first(ranked, n_edges), self.has_effect)
        )
        return row | {"auprc_effects": float(area)}

    def omission(self, edges: pd.DataFrame, ranked: np.ndarray, n_edges: int, max_hops: int) -> float:
        """False omission rate of the first ``n_edges`` of a ranking."""
        if max_hops == 1:
            return self.mean(1 - share_of_first(ranked, n_edges), self.has_effect)
        # edges that cannot be tested are part of the paths, those below the cut are not
        rows = self._look_up(names_of(edges, "source"), names_of(edges, "target"))
        first = np.append(share_of_first(ranked, n_edges) > 0, True)
        return self.mean(~self.reached(edges[first[rows]], max_hops), self.has_effect)


def names_of(frame: pd.DataFrame, column: str) -> pd.Index:
    if not isinstance(frame, pd.DataFrame) or column not in frame:
        found = list(frame.columns) if isinstance(frame, pd.DataFrame) else type(frame).__name__
        raise ValueError(f"Edges are a DataFrame with the columns source and target; got {found}.")
    return pd.Index(frame[column].astype(str).to_numpy(dtype=object))


def _categorical(frame: pd.DataFrame, column: str) -> pd.Categorical:
    """A column as strings; that of a table of millions of pairs is categorical already."""
    if column in frame and isinstance(frame[column].dtype, pd.CategoricalDtype):
        values = frame[column].array.remove_unused_categories()
        return values.rename_categories(values.categories.astype(str))
    return pd.Categorical(names_of(frame, column))


def share_of_first(ranked: np.ndarray, n_edges: int) -> np.ndarray:
    """(pairs,) 1 for the first ``n_edges`` of those that are ranked, 0 for the rest; those that tie at the cut share what is left."""
    n_edges = min(n_edges, int((ranked > 0).sum()))
    if n_edges <= 0:
        return np.zeros(ranked.size)
    cut = np.partition(ranked, ranked.size - n_edges)[ranked.size - n_edges]
    above, tied = ranked > cut, ranked == cut
    return above + tied * ((n_edges - above.sum()) / tied.sum())


def keep_first(ranked: np.ndarray, n_edges: int | None) -> np.ndarray:
    """Scores of the first ``n_edges`` and what ties with the last of them; all others are 0."""
    return ranked if n_edges is None else np.where(share_of_first(ranked, n_edges) > 0, ranked, 0.0)


class AveragePrecision:
    """Average precision of a ranking whose pairs may count more than once, or not at all.

    As :func:`sklearn.metrics.average_precision_score` with ``sample_weight``, sorted once for all weights. Ties are one step.
    """

    def __init__(self, ranked: np.ndarray, is_true: np.ndarray):
        self._order = np.argsort(-ranked, kind="stable")
        self._ends = (
            np.flatnonzero(np.append(np.diff(ranked[self._order]) != 0, True)) if ranked.size else np.zeros(0, int)
        )
        self._is_true = is_true[self._order].astype(float)

    def __call__(self, times: np.ndarray | None = None) -> float:
        """NaN if nothing that counts is true, or everything is."""
        times = np.ones(self._order.size) if times is None else times[self._order]
        true, all_ = (np.cumsum(x)[self._ends] for x in (times * self._is_true, times))
        if not true.size or true[-1] == 0 or true[-1] == all_[-1]:
            return float("nan")
        precision = np.divide(true, all_, out=np.zeros_like(true), where=all_ > 0)
        return float(np.diff(true, prepend=0.0) @ precision / true[-1])


def average_precision(ranked: np.ndarray, is_true: np.ndarray) -> float:
    """Of a ranking in which each pair counts once."""
    return AveragePrecision(ranked, is_true)()
