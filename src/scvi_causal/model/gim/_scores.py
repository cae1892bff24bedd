r"""Score of a node given its parents: the profile likelihood falls apart into nodes, so that a graph can be changed edge by edge.

For fixed parents the best weights, intercept and noise are a weighted least squares fit, in which a perturbational set counts
as far as the node is no target there; which it is follows from the residual. A few steps of this EM are enough.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from scvi_causal.nn import responsibility

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ._objective import Statistics

_N_STEPS = 6
_LARGEST = 2**24  # numbers in one block of gathered statistics
_LOG_2PI = math.log(2 * math.pi)


class NodeFit(NamedTuple):
    """Fits of B nodes with given parents.

    Parameters
    ----------
    score
        (B,) negative log likelihood per cell plus the price of the edges.
    off
        (B, K) probability that the node is no target of each set.
    weights
        (B, width) weights of the residual: 1 for the node, minus the edge weights for its parents in their order, 0 for padding, and
        minus the intercept at last.
    variance
        (B,) noise variance.
    """

    score: Tensor
    off: Tensor
    weights: Tensor
    variance: Tensor


class NodeScores:
    r"""Scores of nodes for sets of parents.

    Parameters
    ----------
    data
        Statistics of the cells.
    hard
        Whether interventions cut the target off its parents.
    target_price
        Nats for a target.
    edge_price
        Nats for an edge. What an edge explains has to be worth it.
    min_noise
        Smallest noise standard deviation.

    Notes
    -----
    With an added constant predictor, :math:`C = C_0 + \sum_k o_k C_k` are the second moments that a node is regressed
    on, where :math:`o_k` is the probability that it is no target of set k. Under shifts the covariance always counts and
    :math:`C_k` are the outer products of the means; under hard interventions all of a set counts, or nothing.
    """

    def __init__(
        self, data: Statistics, *, hard: bool, target_price: float, edge_price: float, min_noise: float
    ) -> None:
        self.hard, self.target_price, self.min_noise = hard, target_price, min_noise
        self.n_total, self.d, self.device = data.n_total, data.n_nodes, data.mean.device
        self.edge_price = edge_price / self.n_total
        self.n = data.n.double()
        self.share = self.n / self.n_total
        ones = torch.ones(len(data.n), 1, dtype=torch.float64, device=self.device)
        self.mean = torch.cat([data.mean.double(), ones], 1)
        control = torch.cat([data.control_mean.double(), ones.new_ones(1)])
        self.fixed = data.n_control / self.n_total * torch.outer(control, control)
        if hard:
            self.control_share = data.n_control / self.n_total
            self.fixed[:-1, :-1] += self.control_share * data.set_covariance[-1].double()
            self.set_moments = torch.einsum("ki,kj->kij", self.mean, self.mean)
            self.set_moments[:, :-1, :-1] += data.set_covariance[:-1].double()
            self.own_variance = data.set_covariance[:-1].double().diagonal(dim1=-2, dim2=-1)
        else:
            self.fixed[:-1, :-1] += data.covariance.double()

    def fit(self, nodes: Sequence[int], parents: Sequence[Sequence[int]], off: Tensor) -> NodeFit:
        """Fit nodes with their parents, from (B, K) probabilities that they are no targets."""
        width = max((len(p) for p in parents), default=0) + 2
        per_row = len(self.n) * width * (width if self.hard else 1)
        step = max(1, _LARGEST // max(per_row, 1))
        parts = [
            self._fit(nodes[i : i + step], parents[i : i + step], off[i : i + step], width)
            for i in range(0, len(nodes), step)
        ]
        return NodeFit(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _fit(self, nodes: Sequence[int], parents: Sequence[Sequence[int]], off: Tensor, width: int) -> NodeFit:
        # own value, parents, constant; the constant also fills up rows with fewer parents, where it is switched off
        place = torch.full((len(nodes), width), self.d, dtype=torch.int64)
        used = torch.zeros(len(nodes), width, dtype=torch.bool)
        for row, (node, chosen) in enumerate(zip(nodes, parents, strict=True)):
            place[row, 0] = node
            place[row, 1 : 1 + len(chosen)] = torch.as_tensor(list(chosen), dtype=torch.int64)
            used[row, 1 : 1 + len(chosen)] = True
        used[:, -1] = True
        place, used = place.to(self.device), used.to(self.device)
        fixed = self.fixed[place[:, :, None], place[:, None, :]]
        mean = self.mean.T[place].transpose(1, 2).contiguous()  # (B, K, width)
        sets = self.set_moments[:, place[:, :, None], place[:, None, :]].transpose(0, 1) if self.hard else None
        own = self.own_variance[:, place[:, 0]].T if self.hard else None
        off = off.to(self.n)
        for _ in range(_N_STEPS):
            weights, variance = self._regress(fixed, mean, sets, off * self.share, used)
            log_off, log_on = self._evidence(weights, variance, mean, sets, own, off)
            off = 1 - responsibility(torch.zeros_like(off), log_off, log_on, self.target_price)
        price = self.edge_price * (used.sum(1) - 1)
        return NodeFit(self._value(weights, variance, fixed, log_off, log_on) + price, off, weights, variance)

    def _regress(self, fixed, mean, sets, share, used):
        """Weights of the residual (own value minus prediction), noise variance."""
        if sets is None:
            second = fixed + (share[:, :, None] * mean).transpose(1, 2) @ mean
            total = share.new_ones(len(share))
        else:
            second = fixed + (share[:, :, None, None] * sets).sum(1)
            total = self.control_share + share.sum(1)
        keep = used.double()
        system = second * keep[:, :, None] * keep[:, None, :] + torch.diag_embed(1 - keep + 1e-9)
        coefficients = torch.linalg.solve(system, second[:, :, 0] * keep)
        weights = -coefficients
        weights[:, 0] = 1.0
        variance = _quadratic(second, weights) / total
        return weights, variance.clamp_min(self.min_noise**2)

    def _evidence(self, weights, variance, mean, sets, own, off):
        """(B, K) log likelihood of each set without and with the node as a target; constants that cancel are left out."""
        if sets is None:
            residual = (mean @ weights[:, :, None])[:, :, 0]
            log_off = -0.5 * self.n * residual.square() / variance[:, None]
            return log_off, torch.zeros_like(log_off)
        spread = _quadratic(sets, weights[:, None])
        log_off = -0.5 * self.n * (variance.log()[:, None] + spread / variance[:, None])
        target_variance = self.target_variance(off, own)[:, None]
        log_on = -0.5 * self.n * (target_variance.log() + own / target_variance)
        return log_off, log_on

    def target_variance(self, off: Tensor, own: Tensor | None = None) -> Tensor:
        """(B,) variance of nodes that are targets of hard interventions, over the sets in which they are.

        Parameters
        ----------
        off
            (B, K) probabilities to be no target.
        own
            (B, K) variances within the sets; by default of all nodes in their order.
        """
        on = (1 - off.to(self.n)) * self.n
        own = self.own_variance.T if own is None else own
        return (((on * own).sum(1) + 1e-3) / (on.sum(1) + 1e-3)).clamp_min(self.min_noise**2)

    def _value(self, weights, variance, fixed, log_off, log_on):
        base = _quadratic(fixed, weights)
        share = self.control_share if self.hard else 1.0
        value = 0.5 * (share * variance.log() + base / variance + _LOG_2PI)
        return value - torch.logaddexp(log_off, log_on - self.target_price).sum(1) / self.n_total


def _quadratic(matrix: Tensor, vector: Tensor) -> Tensor:
    """(...,) ``v' M v``; an einsum would spend its time on planning the order of products this small."""
    return ((matrix @ vector[..., None])[..., 0] * vector).sum(-1)
