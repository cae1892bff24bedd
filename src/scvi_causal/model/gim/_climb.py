"""Hill climbing: edges are added, removed and reversed as long as the score gains.

Gradient descent decides many edges at once and ends in local optima, most of which are a few reversals away from a better
graph. Because the score falls apart into nodes, all single changes of a graph can be tried for the price of a few fits.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_causal.nn import topological_order

if TYPE_CHECKING:
    from torch import Tensor

    from ._scores import NodeScores

_SMALLEST_GAIN = 1e-6  # nats per cell


class Climb:
    """A graph that is improved edge by edge.

    Parameters
    ----------
    scores
        Scores of nodes.
    graph
        (d, d) bool, acyclic, to start from.
    allowed
        (d, d) bool, edges that may be added; all by default.

    Notes
    -----
    Tables run over the edges that may be, not over all pairs. A reversal is a removal and an addition at two different nodes, so that
    its gain is the sum of theirs. After a change only the nodes whose parents changed are scored anew.
    """

    def __init__(self, scores: NodeScores, graph: np.ndarray, allowed: np.ndarray | None = None):
        d = len(graph)
        self.scores, self.graph = scores, np.array(graph, dtype=bool)
        may_be = np.ones((d, d), dtype=bool) if allowed is None else allowed | self.graph
        self.source, self.target = np.nonzero(may_be & ~np.eye(d, dtype=bool))
        # place of each edge, and of its reversal, in the tables; the last place stands for edges that may not be
        place = np.full((d, d), len(self.source), dtype=np.int32)
        place[self.source, self.target] = np.arange(len(self.source))
        self.place, self.opposite = place, place[self.target, self.source]
        self.cost = np.zeros(d)
        self.off: Tensor = scores.n.new_ones(d, len(scores.n))
        # change of the score when the edge is added, or removed; inf where there is nothing to do
        self.adding, self.removing = (np.full(len(self.source) + 1, np.inf) for _ in range(2))
        self._score_nodes(np.arange(d))
        self._see_who_reaches_whom()

    @property
    def score(self) -> float:
        """Score of the graph, negative log likelihood per cell plus the price of its edges."""
        return float(self.cost.sum())

    def run(self, max_steps: int = 10_000) -> Climb:
        """Climb to the top; returns itself."""
        for _ in range(max_steps):
            if not self._step():
                break
        return self

    def _moves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gain of adding, removing and reversing each edge; reversals may still close a cycle."""
        closes = self.reaches[self.target, self.source]
        adding = np.where(closes, np.inf, self.adding[:-1])
        return adding, self.removing[:-1], self.removing[:-1] + self.adding[self.opposite]

    def _step(self) -> bool:
        if not len(self.source):
            return False
        adding, removing, reversing = self._moves()
        best = {"add": int(adding.argmin()), "remove": int(removing.argmin())}
        gains = {"add": adding[best["add"]], "remove": removing[best["remove"]]}
        best["reverse"], gains["reverse"] = self._best_reversal(reversing, min(gains.values()))
        kind = min(gains, key=gains.get)
        if not gains[kind] < -_SMALLEST_GAIN:
            return False
        i, j = self.source[best[kind]], self.target[best[kind]]
        self.graph[i, j] = kind == "add"
        self.graph[j, i] = kind == "reverse"
        self._score_nodes(np.array([i, j] if kind == "reverse" else [j]))
        if kind == "add":
            self.reaches[np.ix_(self.reaches[:, i], self.reaches[j])] = True
        else:
            self._see_who_reaches_whom()
        return True

    def _best_reversal(self, reversing: np.ndarray, to_beat: float) -> tuple[int, float]:
        """The best reversal that closes no cycle, if it is better than what else there is."""
        better = np.flatnonzero(reversing < min(to_beat, -_SMALLEST_GAIN))
        for edge in better[np.argsort(reversing[better], kind="stable")]:
            if self._only_way(self.source[edge], self.target[edge]):
                return int(edge), float(reversing[edge])
        return 0, np.inf

    def _only_way(self, i: int, j: int) -> bool:
        """Whether the edge is the only way from i to j, so that it can be reversed."""
        children = self.graph[i].copy()
        children[j] = False
        return not self.reaches[children, j].any()

    def _score_nodes(self, nodes: np.ndarray) -> None:
        """Fit nodes with their parents, and with one more or one fewer."""
        current = [(j, tuple(np.flatnonzero(self.graph[:, j]))) for j in nodes]
        self.cost[nodes], self.off[nodes] = self._fit(current)
        edges = np.flatnonzero(np.isin(self.target, nodes))
        self.adding[edges] = self.removing[edges] = np.inf
        present = self.graph[self.source[edges], self.target[edges]]
        parents = dict(current)
        changes = [
            (j, tuple(p for p in parents[j] if p != i) if there else (*parents[j], i))
            for i, j, there in zip(self.source[edges], self.target[edges], present, strict=True)
        ]
        if changes:
            gain = self._fit(changes)[0] - self.cost[self.target[edges]]
            self.removing[edges[present]] = gain[present]
            self.adding[edges[~present]] = gain[~present]

    def _fit(self, queries: list[tuple[int, tuple[int, ...]]]) -> tuple[np.ndarray, Tensor]:
        """The better one of two fits: from the targets found last, and from none."""
        nodes, parents = [int(j) for j, _ in queries], [p for _, p in queries]
        last = self.off[nodes]
        fit = self.scores.fit(nodes * 2, parents * 2, torch.cat([last, torch.ones_like(last)]))
        score, off = fit.score.reshape(2, -1), fit.off.reshape(2, len(nodes), -1)
        off = torch.where((score[1] < score[0])[:, None], off[1], off[0])
        return score.amin(0).cpu().numpy(), off

    def _see_who_reaches_whom(self) -> None:
        self.reaches = np.eye(len(self.graph), dtype=bool)
        for node in topological_order(self.graph)[::-1]:
            children = np.flatnonzero(self.graph[node])
            self.reaches[node] |= self.reaches[children].any(0)

    def kicked(self, rng: np.random.Generator) -> Climb:
        """A copy in which one node stands somewhere else in the order, and edges that now run backwards are turned round."""
        order = list(topological_order(self.graph))
        node = order.pop(int(rng.integers(len(order))))
        order.insert(int(rng.integers(len(order) + 1)), node)
        place = np.argsort(order)
        forward = place[:, None] < place[None, :]
        other = copy(self)
        other.graph = (self.graph | self.graph.T) & forward & (self.place < len(self.source))
        for name in ("cost", "adding", "removing"):
            setattr(other, name, getattr(self, name).copy())
        other.off = self.off.clone()
        changed = np.flatnonzero((other.graph != self.graph).any(0))
        if len(changed):
            other._score_nodes(changed)
            other._see_who_reaches_whom()
        else:
            other.reaches = self.reaches.copy()
        return other

    def edge_probability(self) -> np.ndarray:
        """(d, d) probability of each edge among what a single change could make of its pair, the rest of the graph given.

        A pair of nodes has an edge, the opposite edge, or none; each is weighed by its score. This knows nothing of
        changes that involve more than one pair, and so is on the sure side.
        """
        n = self.scores.n_total
        adding, removing, reversing = self._moves()
        adding, at = np.append(adding, np.inf), self.opposite
        present = self.graph[self.source, self.target]
        backwards = self.graph[self.target, self.source]
        reversing = np.append(reversing, np.inf)
        for edge in np.flatnonzero(present):
            if not self._only_way(self.source[edge], self.target[edge]):
                reversing[edge] = np.inf
        removing = np.append(removing, np.inf)
        # cost of having this edge, the opposite one, or neither, relative to the graph as it is
        this = np.where(present, 0.0, np.where(backwards, reversing[at], adding[:-1]))
        opposite = np.where(backwards, 0.0, np.where(present, reversing[:-1], adding[at]))
        neither = np.where(present, removing[:-1], np.where(backwards, removing[at], 0.0))
        cost = np.stack([this, opposite, neither])
        weight = np.exp(-n * (cost - cost.min(0)))
        found = np.zeros(self.graph.shape)
        found[self.source, self.target] = weight[0] / weight.sum(0)
        return found
