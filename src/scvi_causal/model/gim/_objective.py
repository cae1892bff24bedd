r"""The likelihood of a linear Gaussian model in sufficient statistics, with targets and sizes of interventions profiled out.

Everything is batched over a leading dimension of restarts R. Perturbational set k has :math:`n_k` cells with mean :math:`m_k`;
:math:`A = I - W`, :math:`r_k = m_k A - b`. The size of an intervention on node j that fits best is :math:`r_{kj}` itself, so
that what is left of the unknown target is a soft minimum between explaining the set without a target, and paying for one.
The density of a model that still has cycles has the term :math:`\log|\det A|`, without which the likelihood prefers
wrong graphs; it vanishes for acyclic ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)
Parameters = dict[str, "Tensor"]


@dataclass(frozen=True)
class Statistics:
    """Sufficient statistics of the training cells on the scale of the nodes.

    Parameters
    ----------
    n_control
        Number of control cells.
    control_mean
        (d,) their mean.
    n
        (K,) number of cells of each perturbational set.
    mean
        (K, d) their means.
    covariance
        (d, d) covariance within sets, pooled over all of them, controls too.
    set_covariance
        (K + 1, d, d) covariance of each set, that of the controls last; only hard interventions need it.
    """

    n_control: float
    control_mean: Tensor
    n: Tensor
    mean: Tensor
    covariance: Tensor
    set_covariance: Tensor | None = None

    @property
    def n_total(self) -> float:
        """Number of all cells."""
        return float(self.n_control + self.n.sum())

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return self.covariance.shape[-1]

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Statistics:
        """The same on another device, in another precision."""
        moved = {name: getattr(self, name) for name in ("control_mean", "n", "mean", "covariance", "set_covariance")}
        return Statistics(
            self.n_control,
            **{name: None if value is None else value.to(device, dtype) for name, value in moved.items()},
        )

    def capped(self, n_max: float | None) -> Statistics:
        """The same with no set larger than ``n_max``: with many cells every misfit becomes a target."""
        if n_max is None:
            return self
        return Statistics(
            self.n_control,
            self.control_mean,
            self.n.clamp_max(n_max),
            self.mean,
            self.covariance,
            self.set_covariance,
        )


def softmin(u: Tensor, v: Tensor | float) -> Tensor:
    r""":math:`-\log(e^{-u} + e^{-v})`."""
    return -torch.logaddexp(-u, -torch.as_tensor(v, dtype=u.dtype, device=u.device).expand_as(u))


class ShiftObjective:
    """Shift interventions: J(W, b, log sigma), the negative profile log likelihood per cell up to a constant.

    Parameters
    ----------
    data
        Statistics of the cells.
    """

    def __init__(self, data: Statistics):
        self.data = data

    def start(self, n_restarts: int) -> Parameters:
        """No edges, the means of the controls, unit noise: random weights lead to much worse optima."""
        d, like = self.data.n_nodes, self.data.mean
        return {
            "weight": like.new_zeros(n_restarts, d, d),
            "intercept": self.data.control_mean.repeat(n_restarts, 1),
            "log_sd": like.new_zeros(n_restarts, d),
        }

    def misfit(self, p: Parameters) -> Tensor:
        r"""(R, K, d) cost in nats of having no target, :math:`n_k r_{kj}^2 / 2 \sigma_j^2`."""
        residual = self.data.mean @ _system(p["weight"]) - p["intercept"][:, None]
        return 0.5 * self.data.n[:, None] * residual.square() * torch.exp(-2 * p["log_sd"])[:, None]

    def value(self, p: Parameters, sparsity: float, cyclic: bool = True) -> Tensor:
        """(R,) objective; ``sparsity`` is the price of a target in nats, ``cyclic`` whether the graph may have cycles."""
        data, system = self.data, _system(p["weight"])
        precision = torch.exp(-2 * p["log_sd"])
        spread = (system * (data.covariance @ system)).sum(-2)
        residual = data.control_mean @ system - p["intercept"]
        share = data.n_control / data.n_total
        value = (p["log_sd"] + 0.5 * precision * (spread + share * residual.square())).sum(-1)
        value = value + softmin(self.misfit(p), sparsity).sum((-1, -2)) / data.n_total + 0.5 * data.n_nodes * _LOG_2PI
        return value - torch.linalg.slogdet(system).logabsdet if cyclic else value

    def set_gradient(self, p: Parameters, sparsity: float, cyclic: bool = True) -> None:
        """Gradient of the sum of :meth:`value`, written out: three products and one inverse a step, and no tape."""
        data, system = self.data, _system(p["weight"])
        precision = torch.exp(-2 * p["log_sd"])
        product = data.covariance @ system
        residual = torch.matmul(data.mean, system).sub_(p["intercept"][:, None])
        control = data.control_mean @ system - p["intercept"]
        scaled = residual * precision[:, None]
        # probability that there is no target
        off = torch.sigmoid(sparsity - 0.5 * data.n[:, None] * residual * scaled).mul_(data.n[:, None] / data.n_total)
        pull = scaled * off
        control_pull = data.n_control / data.n_total * control * precision
        by_system = product * precision[:, None]
        by_system += data.mean.T @ pull
        by_system += data.control_mean[:, None] * control_pull[:, None]
        gradient = -by_system
        if cyclic:
            gradient += torch.linalg.inv(system).transpose(-1, -2)
        p["weight"].grad = gradient
        p["intercept"].grad = -(pull.sum(1) + control_pull)
        explained = (system * product).sum(-2) * precision + control * control_pull + (pull * residual).sum(1)
        p["log_sd"].grad = 1 - explained


class HardObjective(ShiftObjective):
    """Hard interventions: a target is cut off its parents, so that each set has a determinant of its own.

    The value of a target in set k is its mean there; its noise is shared by all sets. Costs K determinants a step.
    """

    def start(self, n_restarts: int) -> Parameters:
        """As for shifts, and unit noise of the targets."""
        return super().start(n_restarts) | {"log_target_sd": self.data.mean.new_zeros(n_restarts, self.data.n_nodes)}

    def _log_likelihoods(self, p: Parameters) -> tuple[Tensor, Tensor]:
        """(R, K, d) of the sets without and with each node as a target."""
        data, system = self.data, _system(p["weight"])
        spread = torch.einsum("rij,kil,rlj->rkj", system, data.set_covariance[:-1], system)
        residual = data.mean @ system - p["intercept"][:, None]
        own = data.set_covariance[:-1].diagonal(dim1=-2, dim2=-1)
        sd, target_sd = p["log_sd"][:, None], p["log_target_sd"][:, None]
        off = -0.5 * data.n[:, None] * (_LOG_2PI + 2 * sd + (spread + residual.square()) * torch.exp(-2 * sd))
        on = -0.5 * data.n[:, None] * (_LOG_2PI + 2 * target_sd + own * torch.exp(-2 * target_sd))
        return off, on

    def misfit(self, p: Parameters) -> Tensor:
        """(R, K, d) log likelihood ratio of being a target."""
        off, on = self._log_likelihoods(p)
        return on - off

    def value(self, p: Parameters, sparsity: float, cyclic: bool = True) -> Tensor:
        """(R,) objective, see :meth:`ShiftObjective.value`."""
        data, system = self.data, _system(p["weight"])
        off, on = self._log_likelihoods(p)
        total = torch.logaddexp(off, on - sparsity).sum((-1, -2))
        residual = data.control_mean @ system - p["intercept"]
        spread = (system * (data.set_covariance[-1] @ system)).sum(-2) + residual.square()
        total = total - 0.5 * data.n_control * (_LOG_2PI + 2 * p["log_sd"] + spread * torch.exp(-2 * p["log_sd"])).sum(
            -1
        )
        if cyclic:
            kept = torch.sigmoid(off - on + sparsity).detach()  # probability that there is no target
            eye = torch.eye(data.n_nodes, dtype=system.dtype, device=system.device)
            cut = eye - p["weight"][:, None] * kept[:, :, None, :]
            total = total + (data.n * torch.linalg.slogdet(cut).logabsdet).sum(-1)
            total = total + data.n_control * torch.linalg.slogdet(system).logabsdet
        return -total / data.n_total

    def set_gradient(self, p: Parameters, sparsity: float, cyclic: bool = True) -> None:
        """By automatic differentiation."""
        with torch.enable_grad():
            free = {name: value.detach().requires_grad_() for name, value in p.items()}
            gradients = torch.autograd.grad(self.value(free, sparsity, cyclic).sum(), list(free.values()))
        for value, gradient in zip(p.values(), gradients, strict=True):
            value.grad = gradient


def _system(weight: Tensor) -> Tensor:
    return torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device) - weight
