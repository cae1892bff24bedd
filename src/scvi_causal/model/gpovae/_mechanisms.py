"""Masks and embeddings whose dimensions are genes: edges from tokens to nodes, and what reaches a node through other tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scvi_causal.model.samsvae._mechanisms import MechanismDraw, Mechanisms

_ALWAYS = 1.0 - 1e-6  # probability that a perturbation acts on its own gene


class NetworkMechanisms(Mechanisms):
    r"""Direct effects :math:`B = M \odot E` of tokens on nodes, and the effects that follow from them.

    .. math::
        \text{shift}_j = \sum_m P_{jm} B_m

    with the share :math:`P_{jm}` of the intervention on m that the one on j brings about. What goes through other tokens is their
    expected effect; only the own row is drawn. Rows exist for tokens only: what a gene does that nobody perturbs stays at its prior,
    whose KL divergence is 0.

    Parameters
    ----------
    n_tokens, n_nodes
        Sizes; the nodes begin with the tokens.
    **kwargs
        As for :class:`Mechanisms`.

    Attributes
    ----------
    prior_probability, slab
        (n_tokens, n_nodes) prior probability of edges, and prior standard deviation of their weights.
    shares
        (n_tokens, n_tokens) P without its diagonal.
    effect, noise
        (n_tokens, n_nodes) estimated effects and their sampling variances (infinite where there is nothing to explain).
    effect_logits
        (n_tokens, n_nodes) log odds that there is an effect at all, direct or not.
    """

    def __init__(self, n_tokens: int, n_nodes: int, **kwargs: Any):
        super().__init__(n_tokens, n_nodes, **kwargs)
        own = torch.eye(n_tokens, n_nodes, dtype=torch.bool)
        self.register_buffer("is_own", own, persistent=False)
        self.register_buffer("prior_probability", torch.full((n_tokens, n_nodes), self.mask_prior))
        self.register_buffer("slab", torch.full((n_tokens, n_nodes), self.prior_scale))
        self.register_buffer("shares", torch.zeros(n_tokens, n_tokens))
        self.register_buffer("effect", torch.zeros(n_tokens, n_nodes))
        self.register_buffer("effect_logits", torch.full((n_tokens, n_nodes), -torch.inf))
        self.register_buffer("noise", torch.full((n_tokens, n_nodes), torch.inf))
        self.fill_own()

    @torch.no_grad()
    def fill_own(self) -> None:
        """A perturbation acts on its own node for certain; that is no edge."""
        self.prior_probability[self.is_own] = _ALWAYS
        self.mask_logits[self.is_own] = torch.logit(torch.tensor(_ALWAYS)).item()

    def mask_prior_of(self, tokens: Tensor) -> Tensor:
        """(n, n_nodes) prior probabilities."""
        return self.prior_probability[tokens]

    def prior_scale_of(self, tokens: Tensor) -> Tensor:
        """(n, n_nodes) prior standard deviations."""
        return self.slab[tokens]

    def direct(self) -> Tensor:
        """(n_tokens, n_nodes) expected direct effects on other nodes."""
        return torch.sigmoid(self.mask_logits) * self.location * ~self.is_own

    def observed(self) -> tuple[Tensor, Tensor]:
        """(n_tokens, n_nodes) expected effects given their estimates, direct or not, and the probability that there are any."""
        probability = torch.sigmoid(self.effect_logits)
        share = self.slab.square() / (self.slab.square() + self.noise)
        return probability * share * self.effect, probability

    def mediated(self, tokens: Tensor) -> Tensor:
        """(n, n_nodes) what tokens (n,) do through others."""
        return self.shares[tokens] @ self.direct()

    def draw(self, tokens: Tensor, n_particles: int = 1) -> MechanismDraw:
        """Draw effects of tokens (n,); equal tokens are drawn independently."""
        draw = super().draw(tokens, n_particles)
        unique, place = tokens.unique(return_inverse=True)
        through = self.size[unique][:, None] * self.mediated(unique)
        return MechanismDraw(draw.shift + through[place], draw.kl)

    def expected_shift(self, tokens: Tensor) -> Tensor:
        """(n, n_nodes) expected effects of tokens (n,)."""
        return super().expected_shift(tokens) + self.size[tokens][:, None] * self.mediated(tokens)

    def shift_from_noise(self, tokens: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """(n, n_nodes) draws of the effects of tokens (n,) from given random numbers of the same shape."""
        own = super().shift_from_noise(tokens, uniform, normal)
        return own + self.size[tokens][:, None] * self.mediated(tokens)

    def moments(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(n, n_nodes) mean and variance of the effects of tokens on other nodes, sizes left out."""
        probability = torch.sigmoid(self.mask_logits) * ~self.is_own
        mean = probability * self.location
        variance = probability * (self.location.square() + self.log_scale.exp().square()) - mean.square()
        shares = self.shares[tokens]
        return mean[tokens] + shares @ mean, variance[tokens] + shares.square() @ variance
