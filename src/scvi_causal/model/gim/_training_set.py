"""The joint objective: causal model and network together, on statistics of the cells, or on batches of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.nn import log_marginal, responsibility

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.gim._mechanisms import Mechanisms
    from scvi_causal.model.gim._module import GIMModule
    from scvi_causal.model.gim._objective import Statistics

_LOG_2PI = math.log(2 * math.pi)


class TrainingSet(nn.Module):
    """Statistics of some cells, cut to what a given graph needs of them, and the interventions that are asked about.

    Parameters
    ----------
    statistics
        Of the cells.
    mechanisms
        With the graph.
    parts
        ``features``, ``dosage``, ``node`` of the parts of the conditions and the ``members`` (K, n_parts).
    hard
        Whether interventions cut a target off its parents.

    Notes
    -----
    The cost of a step goes with the number of sets times the number of edges, whatever the number of cells.
    """

    def __init__(self, statistics: Statistics, mechanisms: Mechanisms, parts: dict[str, Tensor], hard: bool):
        super().__init__()
        self.hard, self.n_control, self.n_total = hard, statistics.n_control, statistics.n_total
        own = torch.arange(mechanisms.n_nodes)[:, None]
        place = torch.cat([own, mechanisms.parents.cpu()], 1)  # (d, P + 1), the node itself first
        keep = torch.cat([torch.ones_like(own), mechanisms.has_parent.cpu()], 1)
        both = keep[:, :, None] * keep[:, None, :]
        self._keep("n", statistics.n)
        self._keep("mean", statistics.mean[:, place] * keep)
        self._keep("control_mean", statistics.control_mean[place] * keep)
        if hard:
            self._keep("covariance", statistics.set_covariance[:, place[:, :, None], place[:, None, :]] * both)
        else:
            self._keep("covariance", statistics.covariance[place[:, :, None], place[:, None, :]] * both)
        for name, value in parts.items():
            self.register_buffer(f"part_{name}", value, persistent=False)

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float().contiguous(), persistent=False)

    def interventions(self, module: GIMModule) -> tuple[Tensor, Tensor]:
        """(K, d) log odds and sizes that the network gives the sets."""
        return module.combined(self.part_features, self.part_dosage, self.part_node, self.part_members)

    def residual(self, mechanisms: Mechanisms) -> Tensor:
        """(K, d) mean of each node in each set, less what its parents explain."""
        return (self.mean * _residual_weights(mechanisms)).sum(-1) - mechanisms.intercept

    def log_likelihoods(self, mechanisms: Mechanisms, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """(K, d) of the sets without and with each node as a target of ``size``; ``None`` takes the size that fits best."""
        residual, precision = self.residual(mechanisms), torch.exp(-2 * mechanisms.log_sd)
        n = self.n[:, None]
        if not self.hard:
            off = -0.5 * n * residual.square() * precision
            on = torch.zeros_like(off) if size is None else -0.5 * n * (residual - size).square() * precision
            return off, on
        weights = _residual_weights(mechanisms)
        spread = _quadratic(self.covariance[:-1], weights) + residual.square()
        off = -0.5 * n * (_LOG_2PI + 2 * mechanisms.log_sd + spread * precision)
        missed = 0.0 if size is None else (self.mean[:, :, 0] - size).square()
        target_precision = torch.exp(-2 * mechanisms.log_target_sd)
        spread = (self.covariance[:-1, :, 0, 0] + missed) * target_precision
        return off, -0.5 * n * (_LOG_2PI + 2 * mechanisms.log_target_sd + spread)

    def evidence(self, mechanisms: Mechanisms) -> tuple[Tensor, Tensor, Tensor]:
        """(K, d) log likelihoods without and with each node as a target of the size that fits best, and that size."""
        off, on = self.log_likelihoods(mechanisms, None)
        return off, on, self.mean[:, :, 0] if self.hard else self.residual(mechanisms)

    def loss(self, module: GIMModule, tensors: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative marginal log likelihood per cell, and what else to log."""
        mechanisms = module.mechanisms
        logit, size = self.interventions(module)
        off, on = self.log_likelihoods(mechanisms, size)
        value = self._base(mechanisms) - log_marginal(logit, off, on, module.target_price).sum() / self.n_total
        return value, {"n_targets": torch.sigmoid(logit.detach()).sum(-1).mean()}

    def _base(self, mechanisms: Mechanisms) -> Tensor:
        """What does not depend on interventions."""
        weights, log_sd = _residual_weights(mechanisms), mechanisms.log_sd
        residual = (self.control_mean * weights).sum(-1) - mechanisms.intercept
        share = self.n_control / self.n_total
        if self.hard:
            spread = _quadratic(self.covariance[-1], weights) + residual.square()
            return 0.5 * share * (_LOG_2PI + 2 * log_sd + spread * torch.exp(-2 * log_sd)).sum()
        spread = _quadratic(self.covariance, weights) + share * residual.square()
        return 0.5 * (_LOG_2PI + 2 * log_sd + spread * torch.exp(-2 * log_sd)).sum()


class CellTrainingSet(TrainingSet):
    """Cells one by one, for nonlinear mechanisms.

    The likelihood of a set with unknown targets is no sum over its cells. What is minimised instead is its bound with the
    probabilities R of the targets held fixed, which *is* such a sum; they are computed anew from the sums of an epoch.

    Parameters
    ----------
    statistics, mechanisms, parts, hard
        See :class:`TrainingSet`.
    condition
        (n_obs,) condition of each cell of the AnnData, -1 for controls and -2 for cells that are not used.
    start
        (K, d) probabilities to start from.
    """

    def __init__(self, statistics, mechanisms, parts, hard: bool, condition: Tensor, start: Tensor, n_cells: Tensor):
        super().__init__(statistics, mechanisms, parts, hard)
        self.register_buffer("condition", condition, persistent=False)
        self._keep("probability", start)
        self._keep("cell_weight", (statistics.n / n_cells).clamp_max(1.0))
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forget the sums of the last epoch."""
        for name in ("sum_weight", "sum_residual", "sum_square"):
            self._keep(name, torch.zeros_like(self.probability))

    def evidence(self, mechanisms: Mechanisms) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`TrainingSet.evidence`, from the sums of the epoch."""
        n = self.sum_weight.clamp_min(1e-6)
        precision = torch.exp(-2 * mechanisms.log_sd)
        if not self.hard:
            off = -0.5 * self.sum_residual.square() / n * precision
            return off, torch.zeros_like(off), self.sum_residual / n
        off = -0.5 * (n * (_LOG_2PI + 2 * mechanisms.log_sd) + self.sum_square * precision)
        own = self.covariance[:-1, :, 0, 0] * torch.exp(-2 * mechanisms.log_target_sd)
        return off, -0.5 * n * (_LOG_2PI + 2 * mechanisms.log_target_sd + own), self.mean[:, :, 0]

    def loss(self, module: GIMModule, tensors: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Bound on the negative log likelihood per cell of a batch."""
        mechanisms = module.mechanisms
        condition = self.condition[tensors[CAUSAL_KEYS.INDICES].reshape(-1).long()]
        used = condition > -2
        z = module.nodes(module.expression(tensors), module.strata_of(tensors))[used]
        condition = condition[used]
        residual = z - mechanisms.expected(z)
        logit, size = self.interventions(module)
        treated, k = condition >= 0, condition.clamp_min(0)
        probability = self.probability if self.training else torch.sigmoid(logit)
        share = torch.where(treated[:, None], probability[k], 0.0)
        weight = torch.where(treated, self.cell_weight[k], 1.0)
        off = _log_normal(residual, mechanisms.log_sd)
        if self.hard:
            on = _log_normal(z - size[k], mechanisms.log_target_sd)
        else:
            on = _log_normal(residual - size[k], mechanisms.log_sd)
        value = -(weight[:, None] * (share * on + (1 - share) * off)).sum() / weight.sum().clamp_min(1e-6)
        if self.training:
            self._add(residual[treated].detach(), k[treated], weight[treated])
            agree = binary_cross_entropy_with_logits(logit, self.probability, reduction="sum")
            value = value + agree / self.n_total
        return value, {"n_targets": torch.sigmoid(logit.detach()).sum(-1).mean()}

    def _add(self, residual: Tensor, k: Tensor, weight: Tensor) -> None:
        weighted = weight[:, None] * residual
        self.sum_weight.index_add_(0, k, weight[:, None].expand_as(residual).contiguous())
        self.sum_residual.index_add_(0, k, weighted)
        self.sum_square.index_add_(0, k, weighted * residual)

    @torch.no_grad()
    def end_epoch(self, module: GIMModule) -> None:
        """Probabilities of targets from the sums of the epoch, over all processes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for total in (self.sum_weight, self.sum_residual, self.sum_square):
                torch.distributed.all_reduce(total)
        logit, _ = self.interventions(module)
        off, on, _ = self.evidence(module.mechanisms)
        found = responsibility(logit, off, on, module.target_price)
        self.probability.copy_(torch.where(self.sum_weight > 0, found, self.probability))


def _residual_weights(mechanisms: Mechanisms) -> Tensor:
    """(d, P + 1) with which the node and its parents add up to the residual."""
    weight = mechanisms.weight * mechanisms.has_parent
    return torch.cat([torch.ones_like(weight[:, :1]), -weight], 1)


def _quadratic(matrix: Tensor, vector: Tensor) -> Tensor:
    """(...,) ``v' M v``."""
    return ((matrix @ vector[..., None])[..., 0] * vector).sum(-1)


def _log_normal(x: Tensor, log_sd: Tensor) -> Tensor:
    return -0.5 * (_LOG_2PI + 2 * log_sd + x.square() * torch.exp(-2 * log_sd))
