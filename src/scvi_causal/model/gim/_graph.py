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
        Table of the restarts.
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
        found, starts, allowed = pd.DataFrame(), [np.zeros((d, d), dtype=bool)], mask
    else:
        factor = None if penalty_factor is None else torch.from_numpy(penalty_factor)
        result = search_graph(kind(statistics.to(device)), options, factor, judge)
        found, ranking = result.table, "bic" if judge is None else "held_out"
        order = np.argsort(found[ranking].to_numpy(), kind="stable")
        starts = list({result.graphs[i].tobytes(): result.graphs[i] for i in order}.values())
        allowed = None if d <= _ALL_PAIRS else result.candidates
    if mask is None and not options.n_climbs:
        best, climbs = Climb(scores, starts[0]), []
    else:
        climbs = [Climb(scores, graph, allowed).run() for graph in starts[: max(options.n_climbs, 1)]]
        best = min(climbs, key=lambda c: c.score)
        rng = np.random.default_rng([seed, 6])
        for _ in range(options.n_kicks):
            other = best.kicked(rng).run()
            climbs.append(other)
            best = min(best, other, key=lambda c: c.score)
    return _describe(best, scores, climbs or [best], found)


def _describe(best: Climb, scores: NodeScores, climbs: list[Climb], restarts: pd.DataFrame) -> FoundGraph:
    d = len(best.graph)
    parents = [tuple(np.flatnonzero(best.graph[:, j])) for j in range(d)]
    fit = scores.fit(list(range(d)), parents, best.off)
    weights: Tensor = fit.weights.cpu()
    weight = np.zeros((d, d))
    for j, chosen in enumerate(parents):
        weight[list(chosen), j] = -weights[j, 1 : 1 + len(chosen)].numpy()
    return FoundGraph(
        graph=best.graph,
        weight=weight,
        intercept=-weights[:, -1].numpy(),
        log_sd=0.5 * fit.variance.log().cpu().numpy(),
        probability=best.edge_probability(),
        stability=np.mean([c.graph for c in climbs], axis=0),
        off=fit.off.T.cpu().numpy(),
        restarts=restarts,
    )
