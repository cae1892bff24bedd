"""The mechanisms of an acyclic graph: every node from its parents, linear or by a small network."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import leaky_relu

from scvi_causal.nn import topological_order

if TYPE_CHECKING:
    from torch import Tensor


class Mechanisms(nn.Module):
    """Nodes as functions of their parents, plus Gaussian noise.

    Parents are kept as a table that is as wide as the node with most parents needs, so that every cost goes with the number
    of edges rather than with the square of the number of nodes.

    Parameters
    ----------
    n_nodes
        Number of nodes d.
    n_parents
        Largest number of parents P.
    n_hidden
        Hidden units of the network of each node; 0 for linear mechanisms. The network adds to the linear mechanism and starts
        at zero, so that a nonlinear model starts as the linear one.
    """

    def __init__(self, n_nodes: int, n_parents: int, n_hidden: int = 0):
        super().__init__()
        self.n_nodes, self.n_hidden = n_nodes, n_hidden
        self.register_buffer("parents", torch.zeros(n_nodes, n_parents, dtype=torch.int64))
        self.register_buffer("has_parent", torch.zeros(n_nodes, n_parents))
        self.register_buffer("level", torch.zeros(n_nodes, dtype=torch.int64))
        self.weight = nn.Parameter(torch.zeros(n_nodes, n_parents))
        self.intercept = nn.Parameter(torch.zeros(n_nodes))
        self.log_sd = nn.Parameter(torch.zeros(n_nodes))
        self.log_target_sd = nn.Parameter(torch.zeros(n_nodes))
        if n_hidden:
            bound = 1 / math.sqrt(max(n_parents, 1))
            self.first = nn.Parameter(torch.empty(n_nodes, n_parents, n_hidden).uniform_(-bound, bound))
            self.first_bias = nn.Parameter(torch.zeros(n_nodes, n_hidden))
            self.last = nn.Parameter(torch.zeros(n_nodes, n_hidden))

    @torch.no_grad()
    def fill(self, weight: np.ndarray, graph: np.ndarray, intercept: Tensor, log_sd: Tensor, log_target_sd: Tensor):
        """Take over a graph (d, d), its weights and the other parameters."""
        level = np.zeros(self.n_nodes, dtype=np.int64)
        for node in topological_order(graph):  # a node stands one level below its lowest parent
            level[node] = (level[graph[:, node]] + 1).max(initial=0)
        self.level.copy_(torch.from_numpy(level))
        for j in range(self.n_nodes):
            parents = graph[:, j].nonzero()[0]
            self.parents[j, : len(parents)] = torch.as_tensor(parents)
            self.has_parent[j, : len(parents)] = 1.0
            self.weight[j, : len(parents)] = torch.as_tensor(weight[parents, j])
        for target, value in ((self.intercept, intercept), (self.log_sd, log_sd), (self.log_target_sd, log_target_sd)):
            target.copy_(torch.as_tensor(value))

    def dense(self) -> Tensor:
        """(d, d) linear weights, entry (i, j) for the edge i to j."""
        weight = self.weight.new_zeros(self.n_nodes, self.n_nodes)
        target = torch.arange(self.n_nodes, device=weight.device)[:, None].expand_as(self.parents)
        return weight.index_put((self.parents, target), self.weight * self.has_parent, accumulate=True)

    def expected(self, values: Tensor, nodes: Tensor | None = None) -> Tensor:
        """(n, len(nodes)) expectation of nodes given the values (n, d) of all; of all nodes by default."""
        every = nodes is None
        parents, has = (self.parents, self.has_parent) if every else (self.parents[nodes], self.has_parent[nodes])
        weight, intercept = (self.weight, self.intercept) if every else (self.weight[nodes], self.intercept[nodes])
        inputs = values[:, parents] * has
        out = (inputs * weight).sum(-1) + intercept
        if self.n_hidden:
            first, bias, last = (t if every else t[nodes] for t in (self.first, self.first_bias, self.last))
            hidden = leaky_relu(torch.einsum("njp,jph->njh", inputs, first) + bias)
            # at the mean of the controls the network adds nothing, so that the intercept keeps its meaning
            out = out + ((hidden - leaky_relu(bias)) * last).sum(-1)
        return out

    def spread(self, shift: Tensor) -> Tensor:
        """(n, d) total effect of shifts (n, d) in the linear model: the solution of y = shift + y W."""
        system = torch.eye(self.n_nodes, dtype=shift.dtype, device=shift.device) - self.dense().to(shift.dtype)
        order = torch.argsort(self.level, stable=True)
        ordered = system[order][:, order]
        solved = torch.linalg.solve_triangular(ordered, shift[:, order], upper=True, left=False, unitriangular=True)
        return solved[:, torch.argsort(order)]

    def run(self, noise: Tensor, probability: Tensor, size: Tensor, hard: bool) -> Tensor:
        """Nodes under an intervention, level by level along the graph.

        Parameters
        ----------
        noise
            (n, d) noise of the cells.
        probability, size
            (n, d) chance to be a target (0 or 1 for a known intervention) and size of the intervention; with chances in between
            the expected intervention is applied.
        hard
            Whether a target takes the value ``size``, its own noise rescaled to that of targets, or is moved by ``size``.

        Returns
        -------
        (n, d)
        """
        values = torch.zeros_like(noise)
        for depth in range(int(self.level.max()) + 1):
            nodes = torch.nonzero(self.level == depth)[:, 0]
            natural = self.expected(values, nodes) + noise[:, nodes]
            p, s = probability[:, nodes], size[:, nodes]
            if hard:
                ratio = torch.exp(self.log_target_sd[nodes] - self.log_sd[nodes])
                new = (1 - p) * natural + p * (s + ratio * noise[:, nodes])
            else:
                new = natural + p * s
            values = values.index_copy(1, nodes, new)
        return values
