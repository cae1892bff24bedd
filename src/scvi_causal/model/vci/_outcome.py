"""The outcome of cells: its distribution given the latent state, and what is abducted from an observed one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from scvi.distributions import NegativeBinomial
from torch.distributions import Normal

from scvi_causal._constants import NORMALIZED_TOTAL
from scvi_causal.model.base import CounterfactualOutput
from scvi_causal.nn import AbductedCounts, nb_log_likelihood

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.vci._module import VCIModule


class Outcome(NamedTuple):
    """Parameters of the outcome of cells."""

    location: Tensor
    """(cells, genes), for counts on the scale of log1p of counts per 10,000."""
    dispersion: Tensor
    """(genes,) or (cells, genes): inverse dispersion of counts, or standard deviation."""

    def first(self, n_cells: int) -> Outcome:
        """The first cells of a stack of draws."""
        dispersion = self.dispersion if self.dispersion.ndim == 1 else self.dispersion[:n_cells]
        return Outcome(self.location[:n_cells], dispersion)


def log_likelihood(module: VCIModule, x: Tensor, expression: Tensor, outcome: Outcome, library: Tensor) -> Tensor:
    """(cells,) mean over genes of the log likelihood of cells."""
    if module.gene_likelihood == "normal":
        return Normal(outcome.location, outcome.dispersion, validate_args=False).log_prob(expression).mean(1)
    mean = module.rate(outcome.location) * (library / NORMALIZED_TOTAL)
    if outcome.dispersion.ndim == 1:
        return nb_log_likelihood(x, mean, outcome.dispersion) / module.n_genes
    return NegativeBinomial(mu=mean, theta=outcome.dispersion, validate_args=False).log_prob(x).mean(1)


def counterfactual_expression(
    module: VCIModule,
    x: Tensor,
    expression: Tensor,
    library: Tensor,
    before: Outcome,
    after: Outcome,
    generator: torch.Generator | None,
) -> Tensor:
    """(cells, genes) y', the outcome under the target on the scale that the encoder sees.

    ``"abducted"``: the expected expression of this very cell, its noise kept; ``"mean"``: what the decoder expects; ``"sample"``
    (of a Gaussian): a draw.
    """
    kind = module.options.outcome
    if kind == "sample":
        shape, device = after.location.shape, after.location.device
        return after.location + after.dispersion * torch.randn(shape, generator=generator, device=device)
    if kind == "mean":
        return after.location
    if module.gene_likelihood == "nb" and before.dispersion.ndim == 1:
        return _abducted_counts(module, x, library, before, after).expected_log1p(NORMALIZED_TOTAL / library)
    shifted = expression + after.location - before.location
    return F.relu(shifted) if module.log_normalize else shifted


def predict(
    module: VCIModule,
    x: Tensor,
    expression: Tensor,
    library: Tensor,
    before: Outcome | None,
    after: Outcome,
    latent: Tensor,
) -> CounterfactualOutput:
    """Cells under the target; ``before``, the outcome under their own condition, lets them keep their noise."""
    if before is None:
        return _predictive(module, library, after, latent)
    if module.gene_likelihood == "nb":
        if before.dispersion.ndim == 2:  # the coupling of draws needs one dispersion for both conditions
            return _predictive(module, library, after, latent)
        counts = _abducted_counts(module, x, library, before, after)
        return CounterfactualOutput(mean=counts.mean, distribution=counts, latent=latent)
    # the noise of a Gaussian is its residual in standard deviations
    shifted = after.location + (expression - before.location) * (after.dispersion / before.dispersion)
    return CounterfactualOutput(mean=shifted.clamp_min(0.0) if module.log_normalize else shifted, latent=latent)


def _abducted_counts(module: VCIModule, x: Tensor, library: Tensor, before: Outcome, after: Outcome) -> AbductedCounts:
    to_counts = library / NORMALIZED_TOTAL
    rates = module.rate(before.location) * to_counts, module.rate(after.location) * to_counts
    return AbductedCounts(x, *rates, after.dispersion)


def _predictive(module: VCIModule, library: Tensor, outcome: Outcome, latent: Tensor) -> CounterfactualOutput:
    """The distribution that the decoder gives, without the noise of the source cell (as published)."""
    spread = outcome.dispersion.expand_as(outcome.location)
    if module.gene_likelihood == "nb":
        mean = module.rate(outcome.location) * (library / NORMALIZED_TOTAL)
        distribution = NegativeBinomial(mu=mean, theta=spread, validate_args=False)
        return CounterfactualOutput(mean=mean, distribution=distribution, latent=latent)
    distribution = Normal(outcome.location, spread, validate_args=False)
    return CounterfactualOutput(mean=outcome.location, distribution=distribution, latent=latent)
