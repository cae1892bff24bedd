"""The artifact loss: basal states of a cell and of a reference from the other quality class are held against each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scvi_causal.model.cradlevae._artifacts import of_quality

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.cradlevae._module import CRADLEVAEModule


def kl_gaussians(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> Tensor:
    r"""KL divergence of one diagonal Gaussian from another, per entry.

    Examples
    --------
    >>> import torch
    >>> one, two = torch.tensor(1.0), torch.tensor(4.0)
    >>> round(float(kl_gaussians(0 * one, one, one, two)), 6)
    0.443147
    """
    ratio = variance / other_variance
    return 0.5 * (ratio - 1.0 - ratio.log() + (mean - other_mean).square() / other_variance)


def published_divergence(mean: Tensor, variance: Tensor, other_mean: Tensor, other_variance: Tensor) -> Tensor:
    """What is published in its place: the difference of means is not divided by the variance.

    Examples
    --------
    >>> import torch
    >>> one, two = torch.tensor(1.0), torch.tensor(4.0)
    >>> round(float(published_divergence(0 * one, one, one, two)), 6)
    0.818147
    """
    ratio = variance / other_variance
    return 0.5 * (ratio - 1.0 - ratio.log() + (mean - other_mean).square())


def artifact_loss(
    module: CRADLEVAEModule,
    expression: Tensor,
    reference: Tensor,
    dosage: Tensor,
    covariates: Tensor,
    quality: Tensor,
    other_quality: Tensor,
    drawn: dict[str, Tensor],
) -> Tensor:
    """One number for the cells of a batch that have a reference.

    Parameters
    ----------
    module
        The module; its options say which loss.
    expression, reference
        (cells, genes) standardised expression of the cells and of their reference profiles.
    dosage, covariates
        Of the cells.
    quality, other_quality
        (cells,) class of each cell, and the opposite one.
    drawn
        Outputs of the inference, for these cells.
    """
    shift, artifacts = drawn["shift"], drawn["artifacts"]
    covariates = module.at_quality(covariates, other_quality)
    opposite = module.join(shift, of_quality(artifacts, other_quality))
    if module.options.artifact_loss == "published":
        return _published(module, expression, reference, dosage, covariates, other_quality, opposite)
    if module.options.artifact_loss == "matched":
        own = drawn["qz_mean"]
        theirs = module.encode(reference, opposite, covariates)[0]
        sign = torch.where(quality > 0, 1.0, -1.0)
        # the average over cells is what differs between classes; what differs between cells is theirs
        return 0.5 * ((own - theirs) * sign[:, None]).mean(-2).square().sum(-1).mean()
    own = module.encode(expression, opposite, covariates)
    with torch.no_grad():
        theirs = module.encode(reference, opposite, covariates)
    return kl_gaussians(*theirs, *own).sum(-1).mean()


def _published(module, expression, reference, dosage, covariates, other_quality, opposite) -> Tensor:
    """Sum over cells, mean over particles; global variables of the reference are drawn anew."""
    shift, _ = module.draw_condition(dosage, len(opposite))
    artifacts, _ = module.artifacts.draw(len(opposite), 1 if module.options.shared_draws else len(dosage))
    again = module.join(shift, of_quality(artifacts, other_quality))
    theirs = module.encode(reference, again, covariates)
    own = module.encode(expression, opposite, covariates)
    return published_divergence(*theirs, *own).sum(-1).sum(-1).mean()
