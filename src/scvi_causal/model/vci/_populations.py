"""Distribution losses: predictions under a target against what was observed under it in the same stratum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from scvi_causal.nn import grouped_energy_distance, kernel_density_loss, matched_log_kernel

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.vci._module import VCIModule

_N_REFERENCES = 20


def distribution_loss(module: VCIModule, outputs: dict) -> Tensor:
    """Loss of a batch; 0 where nothing was observed under any of the targets."""
    kind = module.options.distribution_loss
    if kind == "discriminator":
        fake = _judge(module, outputs["outcome"], outputs["target"], outputs["contexts"])
        return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))
    if kind == "energy":
        return _energy(outputs)
    if kind == "kernel":
        return _kernel(outputs)
    group = module.table.group.reshape(-1)[outputs["asked"]]
    if kind == "match":
        return _match(module, outputs["outcome"], group)
    return _moments(module, outputs, group)


def _match(module: VCIModule, predicted: Tensor, group: Tensor) -> Tensor:
    observed = group >= 0
    place = group.clamp_min(0)
    per_cell = matched_log_kernel(predicted, module.table.mean[place], module.table.variance[place])
    return _mean_where(per_cell, observed)


def _moments(module: VCIModule, outputs: dict, after: Tensor) -> Tensor:
    """Mean change of the cells that go from one observed group to another, against the difference of the two groups.

    The change of a cell has little noise, because the cell is its own control; the difference of groups is what was observed.
    """
    table, received = module.table, outputs["received"]
    before = torch.where(received >= 0, table.group.reshape(-1)[received.clamp_min(0)], -1)
    observed = (after >= 0) & (before >= 0)
    n_groups = len(table.mean)
    key, member, count = torch.unique(
        torch.where(observed, after * n_groups + before, -1), return_inverse=True, return_counts=True
    )
    share = (1.0 / count)[member].unsqueeze(1)

    def mean_of(values: Tensor) -> Tensor:
        return torch.zeros(len(key), values.shape[1], device=values.device).index_add(0, member, values * share)

    change = outputs["outcome"] - outputs["expression"]
    mean, weight = mean_of(change), count * (key >= 0)
    pair = key.clamp_min(0)
    error = (mean - (table.mean[pair // n_groups] - table.mean[pair % n_groups])).square()
    # the mean of few cells is off by its own noise, and a loss that contains this noise shrinks the effects to lessen it
    spread = (mean_of(change.square()) - mean.square()).clamp_min(0.0)
    error = error - spread / (count - 1).clamp_min(1).unsqueeze(1)
    return (error.mean(1) * weight).sum() / weight.sum().clamp_min(1)


def _kernel(outputs: dict) -> Tensor:
    """Kernel density estimate from cells of the batch that received the target in the same stratum."""
    asked, received = outputs["asked"], outputs["received"]
    same = asked[:, None] == received[None]
    observed = same.any(1)
    rows = same.float() + ~observed[:, None] * 1.0
    chosen = torch.multinomial(rows, _N_REFERENCES, replacement=True)
    per_cell = kernel_density_loss(outputs["outcome"], outputs["expression"][chosen])
    return _mean_where(per_cell, observed)


def _energy(outputs: dict) -> Tensor:
    """Energy distance of the predicted population of each group and of the cells of the batch that are in it."""
    distance = grouped_energy_distance(outputs["outcome"], outputs["expression"], outputs["asked"], outputs["received"])
    if not len(distance):
        return outputs["outcome"].sum() * 0.0
    return distance.mean() / outputs["outcome"].shape[1] ** 0.5


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp_min(1)


# ---------------------------------------------------------------------- the discriminator


def _judge(module: VCIModule, expression: Tensor, treatment: Tensor, contexts: dict[str, Tensor]) -> Tensor:
    covariates = module.discriminator["covariates"](contexts)
    return module.discriminator["body"](torch.cat([expression, treatment, covariates], 1)).squeeze(1)


def discriminator_loss(module: VCIModule, outputs: dict) -> Tensor:
    """Cross-entropy of the discriminator: observed cells are real, counterfactuals are not."""
    covariates = outputs["contexts"]
    real = _judge(module, outputs["expression"], outputs["treatment"].detach(), covariates)
    fake = _judge(module, outputs["outcome"].detach(), outputs["target"].detach(), covariates)
    return F.binary_cross_entropy_with_logits(real, torch.ones_like(real)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros_like(fake)
    )
