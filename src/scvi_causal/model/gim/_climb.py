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
    A reversal is a removal and an addition at two different nodes, so that its gain is the sum of theirs. After a change only
    the nodes whose parents changed are scored anew.
    """

    def __init__(self, scores: NodeScores, graph: np.ndarray, allowed: np.ndarray | None = None):
        d = len(graph)
        self.scores, self.graph = scores, np.array(graph, dtype=bool)
        self.allowed = ~np.eye(d, dtype=bool) if allowed is None else allowed & ~np.eye(d, dtype=bool)
        self.allowed |= self.graph
        self.cost = np.zeros(d)
        self.off: Tensor = scores.n.new_ones(d, len(scores.n))
        # change of the score when the edge is added, or removed; inf where there is nothing to do
        self.adding, self.removing = np.full((d, d), np.inf), np.full((d, d), np.inf)
        self._score_nodes(range(d))
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

    def _step(self) -> bool:
        adding = np.where(self.reaches.T, np.inf, self.adding)  # j reaches i: i to j would close a cycle
        removing = self.removing
        reversing = np.where(self.graph & self.allowed.T, removing + self.adding.T, np.inf)
        best_reversal = self._best_reversal(reversing, min(adding.min(), removing.min()))
        moves = [(adding.min(), "add"), (removing.min(), "remove"), (best_reversal[0], "reverse")]
        gain, kind = min(moves)
        if not gain < -_SMALLEST_GAIN:
            return False
        table = {"add": adding, "remove": removing}.get(kind)
        i, j = best_reversal[1] if table is None else np.unravel_index(table.argmin(), table.shape)
        self.graph[i, j] = kind == "add"
        if kind == "reverse":
            self.graph[j, i] = True
        self._score_nodes([i, j] if kind == "reverse" else [j])
        if kind == "add":
            self.reaches[np.ix_(self.reaches[:, i], self.reaches[j])] = True
        else:
            self._see_who_reaches_whom()
        return True

    def _best_reversal(self, reversing: np.ndarray, to_beat: float) -> tuple[float, tuple[int, int]]:
        """The best reversal that closes no cycle, if it is better than what else there is."""
        source, target = np.nonzero(reversing < min(to_beat, -_SMALLEST_GAIN))
        for k in np.argsort(reversing[source, target], kind="stable"):
            i, j = source[k], target[k]
            children = self.graph[i].copy()
            children[j] = False
            if not self.reaches[children, j].any():  # no second way from i to j
                return reversing[i, j], (i, j)
        return np.inf, (0, 0)

    def _score_nodes(self, nodes) -> None:
        """Fit nodes with their parents, and with one more or one fewer."""
        current = [(j, tuple(np.flatnonzero(self.graph[:, j]))) for j in nodes]
        rows = [j for j, _ in current]
        costs, self.off[rows] = self._fit(current)
        self.cost[rows] = costs
        changes, where = [], []
        for j, parents in current:
            self.adding[:, j] = self.removing[:, j] = np.inf
            others = np.flatnonzero(self.allowed[:, j] & ~self.graph[:, j])
            changes += [(j, (*parents, i)) for i in others]
            changes += [(j, tuple(p for p in parents if p != i)) for i in parents]
            where += [(i, j) for i in (*others, *parents)]
        if changes:
            costs, _ = self._fit(changes)
            for (i, j), cost in zip(where, costs, strict=True):
                table = self.removing if self.graph[i, j] else self.adding
                table[i, j] = cost - self.cost[j]

    def _fit(self, queries: list[tuple[int, tuple[int, ...]]]) -> tuple[np.ndarray, Tensor]:
        """The better one of two fits: from the targets found last, and from none."""
        nodes, parents = [j for j, _ in queries], [p for _, p in queries]
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
        pairs = self.graph | self.graph.T
        graph = pairs & (place[:, None] < place[None, :]) & self.allowed
        other = copy(self)
        for name in ("cost", "adding", "removing"):
            setattr(other, name, getattr(self, name).copy())
        other.off, other.graph = self.off.clone(), graph
        changed = np.flatnonzero((graph != self.graph).any(0))
        if len(changed):
            other._score_nodes(changed)
            other._see_who_reaches_whom()
        return other

    def edge_probability(self) -> np.ndarray:
        """(d, d) probability of each edge among what a single change could make of its pair, the rest of the graph given.

        A pair of nodes has an edge, the opposite edge, or none; each is weighed by its score. This knows nothing of
        changes that involve more than one pair, and so is on the sure side.
        """
        d, n = len(self.graph), self.scores.n_total
        adding = np.where(self.reaches.T, np.inf, self.adding)
        cost = np.full((3, d, d), np.inf)  # of i to j, j to i, neither; relative to the graph as it is
        for i, j in np.argwhere(self.graph):
            children = self.graph[i].copy()
            children[j] = False
            reverse = np.inf if self.reaches[children, j].any() else self.removing[i, j] + self.adding[j, i]
            cost[:, i, j] = 0.0, reverse, self.removing[i, j]
            cost[:, j, i] = reverse, 0.0, self.removing[i, j]
        none = ~(self.graph | self.graph.T)
        cost[0][none], cost[1][none], cost[2][none] = adding[none], adding.T[none], 0.0
        weight = np.exp(-n * (cost - cost.min(0)))
        found = weight[0] / weight.sum(0)
        np.fill_diagonal(found, 0.0)
        return found
