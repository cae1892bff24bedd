"""The graph from statistics: gradient search, then hill climbing, then what is known of each edge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvi_causal.model.gim._climb import Climb
from scvi_causal.model.gim._objective import HardObjective, ShiftObjective
from scvi_causal.model.gim._scores import NodeScores
from scvi_causal.model.gim._search import SearchOptions, search_graph

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.gim._objective import Statistics

TARGET_PRICE = 3.0  # nats, while the graph is searched
_ALL_PAIRS = 60  # up to this many nodes any edge may be added when climbing


@dataclass(frozen=True)
class FoundGraph:
    """A graph, the model on it, and how sure its edges are.

    Parameters
    ----------
    graph
        (d, d) bool, acyclic.
    weight
        (d, d) weights.
    intercept, log_sd
        (d,)
    probability
        (d, d) probability of each edge, the rest of the graph given.
    stability
        (d, d) share of the restarts in which hill climbing kept the edge.
    off
        (K, d) probability that a node is no target of a set.
    restarts
        One row per restart of the gradient search: its settings, what it reached, what was reached by climbing from it
        (``climbed``), and whether the graph comes from it (``chosen``).
    """

    graph: np.ndarray
    weight: np.ndarray
    intercept: np.ndarray
    log_sd: np.ndarray
    probability: np.ndarray
    stability: np.ndarray
    off: np.ndarray
    restarts: pd.DataFrame


def find_graph(
    statistics: Statistics,
    options: SearchOptions,
    *,
    hard: bool,
    min_gain: float = 0.0,
    penalty_factor: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    held_out: Statistics | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> FoundGraph:
    """Search the graph of a model.

    Parameters
    ----------
    statistics
        Of the training cells.
    options
        How to search.
    hard
        Whether interventions cut a target off its parents.
    min_gain
        Nats per cell that an edge has to be worth beyond its price in the BIC.
    penalty_factor
        (d, d) factor on the penalty of each edge, from prior knowledge.
    mask
        (d, d) bool, edges that may be. A sparse one makes the gradient search unnecessary: hills are climbed from no edge.
    held_out
        Statistics of sets that do not train; if given they choose among restarts.
    device
        Device of the gradient search.
    seed
        Of the kicks.
    """
    kind = HardObjective if hard else ShiftObjective
    n = statistics.n_total
    price = 0.5 * math.log(n) + min_gain * n
    scores = NodeScores(statistics, hard=hard, target_price=TARGET_PRICE, edge_price=price, min_noise=options.min_noise)
    judge = None if held_out is None else kind(held_out.to(device))
    d = statistics.n_nodes
    if mask is not None:
        found, starts, allowed = pd.DataFrame({"chosen": [True]}), {0: np.zeros((d, d), dtype=bool)}, mask
    else:
        factor = None if penalty_factor is None else torch.from_numpy(penalty_factor)
        result = search_graph(kind(statistics.to(device)), options, factor, judge)
        found = result.table
        starts = _distinct(result.graphs, found["bic" if judge is None else "held_out"].to_numpy())
        allowed = None if d <= _ALL_PAIRS else result.candidates
    n_climbs = max(options.n_climbs, 1)
    climbs = {i: Climb(scores, graph, allowed) for i, graph in list(starts.items())[:n_climbs]}
    tops = list(climbs.items())
    if mask is not None or options.n_climbs:
        tops = _kicked([(i, climb.run()) for i, climb in tops], options.n_kicks, seed)
    return _choose(tops, scores, judge, found)


def _distinct(graphs: np.ndarray, criterion: np.ndarray) -> dict[int, np.ndarray]:
    """Graphs by the number of their restart, the best first, each once."""
    found = {}
    for i in np.argsort(criterion, kind="stable"):
        found.setdefault(graphs[i].tobytes(), int(i))
    return {i: graphs[i] for i in found.values()}


def _kicked(tops: list[tuple[int, Climb]], n_kicks: int, seed: int) -> list[tuple[int, Climb]]:
    """(restart, top) of all climbs: those there are, then from the best one, disturbed again and again."""
    tops = list(tops)
    start, best = min(tops, key=lambda top: top[1].score)
    rng = np.random.default_rng([seed, 6])
    for _ in range(n_kicks):
        other = best.kicked(rng).run()
        tops.append((start, other))
        best = min(best, other, key=lambda climb: climb.score)
    return tops


def _choose(
    tops: list[tuple[int, Climb]], scores: NodeScores, judge: ShiftObjective | None, table: pd.DataFrame
) -> FoundGraph:
    """The top with the best score, or the one under which the sets that do not train are likeliest."""
    start, best = min(tops, key=lambda top: top[1].score)
    table["climbed"] = pd.Series({i: min(c.score for j, c in tops if j == i) for i, _ in tops})
    if judge is not None:
        values = [_held_out_value(climb, scores, judge) for _, climb in tops]
        start, best = tops[int(np.argmin(values))]
        table["climbed_held_out"] = pd.Series(
            {i: min(v for v, (j, _) in zip(values, tops, strict=True) if j == i) for i, _ in tops}
        )
    table["chosen"] = table.index == start
    return _describe(best, scores, [climb for _, climb in tops], table)


def _held_out_value(climb: Climb, scores: NodeScores, judge: ShiftObjective) -> float:
    """Negative log likelihood per cell of sets that do not train, under a graph as it was fitted to those that do."""
    weight, intercept, log_sd, off = _fit_of(climb, scores)
    given = {"weight": weight, "intercept": intercept, "log_sd": log_sd}
    if isinstance(judge, HardObjective):
        given["log_target_sd"] = 0.5 * scores.target_variance(torch.from_numpy(off).T).log().cpu().numpy()
    given = {name: torch.from_numpy(value).to(judge.data.mean)[None] for name, value in given.items()}
    return float(judge.value(given, TARGET_PRICE, cyclic=False))


def _fit_of(climb: Climb, scores: NodeScores) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(d, d) weights, (d,) intercepts, (d,) log standard deviations, (K, d) probabilities to be no target."""
    d = len(climb.graph)
    parents = [tuple(np.flatnonzero(climb.graph[:, j])) for j in range(d)]
    fit = scores.fit(list(range(d)), parents, climb.off)
    weights: Tensor = fit.weights.cpu()
    weight = np.zeros((d, d))
    for j, chosen in enumerate(parents):
        weight[list(chosen), j] = -weights[j, 1 : 1 + len(chosen)].numpy()
    return weight, -weights[:, -1].numpy(), 0.5 * fit.variance.log().cpu().numpy(), fit.off.T.cpu().numpy()


def _describe(best: Climb, scores: NodeScores, climbs: list[Climb], restarts: pd.DataFrame) -> FoundGraph:
    weight, intercept, log_sd, off = _fit_of(best, scores)
    return FoundGraph(
        graph=best.graph,
        weight=weight,
        intercept=intercept,
        log_sd=log_sd,
        probability=best.edge_probability(),
        stability=np.mean([c.graph for c in climbs], axis=0),
        off=off,
        restarts=restarts,
    )
