"""The graph: searched on population statistics, without any network, from several settings at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scvi_causal.nn import ACYCLICITY, greedy_dag

if TYPE_CHECKING:
    from torch import Tensor

    from ._objective import Parameters, ShiftObjective

# price of a target, share of the steps, factor on the edge penalty: see SearchOptions.n_steps
_PATH = ((20.0, 0.16, 1.0), (8.0, 0.16, 1.0), (3.0, 0.26, 1.0), (3.0, 0.21, 1 / 3), (3.0, 0.21, 0.1))
_REFIT_PRICE = 3.0
_DOMAIN = 0.9 * 2.0  # of the log-determinant penalty, whose s is 2


@dataclass(frozen=True)
class SearchOptions:
    """How the graph is searched by gradients, and from how many of its results hills are climbed.

    Parameters
    ----------
    edge_penalties
        Settings of the L1 penalty on edge weights, per cell.
    dag_weights
        Settings of the weight of the acyclicity penalty, per cell. Every pair of settings is one restart.
    acyclicity
        Name of the penalty, of :data:`scvi_causal.nn.ACYCLICITY`.
    n_steps, n_refit_steps
        Steps of the search, and of the refit on the acyclic graph.
    threshold
        Smallest absolute weight (standardised nodes) of an edge that is kept.
    min_noise
        Smallest noise standard deviation, in standard deviations of the controls.
    lr
        Learning rate of Adam.
    n_climbs
        Hills are climbed from this many of the best restarts; 0 leaves the graph as gradients found it.
    n_kicks
        How often the best graph is disturbed and climbed from again.
    """

    edge_penalties: tuple[float, ...] = (0.03, 0.06, 0.09)
    dag_weights: tuple[float, ...] = (0.0, 0.1)
    acyclicity: str = "logdet"
    n_steps: int = 1900
    n_refit_steps: int = 400
    threshold: float = 0.1
    min_noise: float = 0.02
    lr: float = 1e-2
    n_climbs: int = 3
    n_kicks: int = 20

    def scaled(self, factor: float) -> SearchOptions:
        """The same with fewer steps."""
        n_steps, n_refit = (max(1, round(factor * n)) for n in (self.n_steps, self.n_refit_steps))
        return replace(self, n_steps=n_steps, n_refit_steps=n_refit)


@dataclass(frozen=True)
class SearchResult:
    """Restarts of a search, refitted on their acyclic graphs.

    Parameters
    ----------
    table
        One row per restart: settings, number of edges, objective, BIC, acyclicity before the projection, whether chosen.
    graphs
        (R, d, d) bool.
    parameters
        Refitted parameters, each (R, ...).
    best
        Restart that was chosen.
    candidates
        (d, d) bool, pairs of nodes that were close to an edge in any restart, either way round.
    """

    table: pd.DataFrame
    graphs: np.ndarray
    parameters: Parameters
    best: int
    candidates: np.ndarray

    def chosen(self) -> Parameters:
        """Parameters of the restart that was chosen."""
        return {name: value[self.best] for name, value in self.parameters.items()}


@torch.no_grad()
def search_graph(
    objective: ShiftObjective,
    options: SearchOptions,
    penalty_factor: Tensor | None = None,
    held_out: ShiftObjective | None = None,
) -> SearchResult:
    """Search, project to acyclic graphs, refit, and choose.

    Parameters
    ----------
    objective
        What to minimise.
    options
        How.
    penalty_factor
        (d, d) factor on the edge penalty, infinite for edges that must not be; prior knowledge enters here.
    held_out
        Objective on sets that did not train; if given it chooses the restart, otherwise the BIC does.

    Returns
    -------
    All restarts; see :class:`SearchResult`.
    """
    grid = [(w, a) for a in options.dag_weights for w in options.edge_penalties]
    p = _descend(objective, options, grid, penalty_factor)
    weight = p["weight"]
    cyclicity = ACYCLICITY[options.acyclicity](weight.double().square())
    near = (weight.abs() > options.threshold / 4).any(0).cpu().numpy()
    graphs = np.stack([greedy_dag(w.abs().cpu().numpy(), options.threshold) for w in weight])
    refit(objective, p, torch.from_numpy(graphs).to(weight.device), options)
    value = objective.value(p, _REFIT_PRICE, cyclic=False).double().cpu().numpy()
    n_edges, n_cells = graphs.sum((1, 2)), objective.data.n_total
    bic = value + 0.5 * math.log(n_cells) * n_edges / n_cells
    table = pd.DataFrame(grid, columns=["edge_penalty", "dag_weight"])
    table["n_edges"], table["objective"], table["bic"] = n_edges, value, bic
    table["acyclicity"] = cyclicity.cpu().numpy()
    criterion = bic
    if held_out is not None:
        table["held_out"] = held_out.value(p, _REFIT_PRICE, cyclic=False).double().cpu().numpy()
        criterion = table["held_out"].to_numpy()
    best = int(np.argmin(np.where(np.isfinite(criterion), criterion, np.inf)))
    table["chosen"] = np.arange(len(table)) == best
    return SearchResult(table, graphs, p, best, near | near.T)


def _descend(
    objective: ShiftObjective, options: SearchOptions, grid: list, penalty_factor: Tensor | None
) -> Parameters:
    """Adam along the path of prices and penalties, all restarts at once."""
    p = objective.start(len(grid))
    weight = p["weight"]
    l1, dag = (weight.new_tensor(values)[:, None, None] for values in zip(*grid, strict=True))
    allowed = 1 - torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    if penalty_factor is not None:
        penalty_factor = penalty_factor.to(weight)
        allowed = allowed * torch.isfinite(penalty_factor)
        l1 = l1 * torch.where(torch.isfinite(penalty_factor), penalty_factor, 0)
    penalised = bool((dag > 0).any())
    optimizer = torch.optim.Adam(p.values(), lr=options.lr)
    step = 0
    for price, share, factor in _PATH:
        for _ in range(max(1, round(share * options.n_steps))):
            objective.set_gradient(p, price)
            gradient = weight.grad
            gradient += factor * l1 * weight.sign()
            if penalised:
                gradient += dag * _acyclicity_gradient(weight, options.acyclicity)
            gradient *= allowed
            optimizer.step()
            p["log_sd"].clamp_(min=math.log(options.min_noise))
            step += 1
            if penalised and options.acyclicity == "logdet" and step % 50 == 0:
                _stay_in_domain(weight)
    return p


def _acyclicity_gradient(weight: Tensor, name: str) -> Tensor:
    if name == "logdet":
        system = 2.0 * torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device) - weight.square()
        return 2 * weight * torch.linalg.inv(system).transpose(-1, -2)
    with torch.enable_grad():
        free = weight.detach().requires_grad_()
        return torch.autograd.grad(ACYCLICITY[name](free.square()).sum(), free)[0]


def _stay_in_domain(weight: Tensor) -> None:
    """Shrink restarts whose squared weights leave the domain in which the log-determinant means anything."""
    radius = ACYCLICITY["spectral"](weight.square())
    factor = (_DOMAIN / radius.clamp_min(1e-6)).sqrt().clamp_max(1.0)
    weight.mul_(factor[:, None, None])


def refit(objective: ShiftObjective, p: Parameters, graphs: Tensor, options: SearchOptions) -> None:
    """Fit all parameters again on given acyclic graphs (R, d, d), without a penalty on the edges."""
    p["weight"].mul_(graphs)
    optimizer = torch.optim.Adam(p.values(), lr=options.lr)
    # the last steps are small ones, so that what the restarts are compared by is not noise
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.n_refit_steps, eta_min=options.lr / 20)
    for _ in range(options.n_refit_steps):
        objective.set_gradient(p, _REFIT_PRICE, cyclic=False)
        p["weight"].grad *= graphs
        optimizer.step()
        schedule.step()
        p["log_sd"].clamp_(min=math.log(options.min_noise))
