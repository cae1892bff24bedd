"""What tokens do in latent space: embeddings and masks, global variables with a variational family each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scvi_causal.model.samsvae._network import GaussianEncoder
from scvi_causal.nn import MaskGradient, kl_bernoulli, kl_standard_normal, straight_through_bernoulli
from scvi_causal.nn._masks import log_bernoulli, log_normal, prior_logits

Guide = Literal["spike-and-slab", "correlated", "mean-field"]

_SMALLEST_SCALE = 1e-4


@dataclass
class MechanismDraw:
    """A draw of what tokens do.

    Parameters
    ----------
    shift
        (..., tokens, n_latent) mask times embedding.
    kl
        (..., tokens) KL divergence from the prior, of embedding and mask together: exact, or its value at the draw.
    """

    shift: Tensor
    kl: Tensor


class Mechanisms(nn.Module):
    r"""Embeddings :math:`E` and masks :math:`M` of tokens, and what is believed of them.

    .. math::
        M_{tl} \sim \mathrm{Bernoulli}(\pi), \quad E_{tl} \sim N(0, \sigma_E^2), \quad \text{shift}_t = M_t \odot E_t

    Parameters
    ----------
    n_tokens, n_latent
        Sizes.
    masked
        Whether there are masks; without, a shift is an embedding.
    guide
        Variational family of :math:`E` given :math:`M`. ``"mean-field"``: independent of it. ``"correlated"``: a network of the
        mask and the token. ``"spike-and-slab"``: a Gaussian where the mask is on and the prior where it is off, which is what the exact
        posterior does there.
    mask_prior, embedding_prior_scale
        :math:`\pi` and :math:`\sigma_E`.
    mask_start, embedding_start, scale_start
        First log odds of the masks, spread of the first embeddings, and their first uncertainty.
    analytic_kl
        Whether KL divergences are exact where they can be; else they are differences of log densities at the draw.
    gradient
        Of the masks, see :func:`~scvi_causal.nn.straight_through_bernoulli`.
    n_hidden, n_layers
        Of the network of the correlated guide.
    """

    def __init__(
        self,
        n_tokens: int,
        n_latent: int,
        *,
        masked: bool = True,
        guide: Guide = "spike-and-slab",
        mask_prior: float = 0.01,
        embedding_prior_scale: float = 1.0,
        mask_start: float = 0.0,
        embedding_start: float = 0.0,
        scale_start: float = 1.0,
        analytic_kl: bool = True,
        gradient: MaskGradient = "mean",
        n_hidden: int = 400,
        n_layers: int = 4,
    ):
        super().__init__()
        self.n_tokens, self.n_latent, self.masked, self.guide = n_tokens, n_latent, masked, guide
        self.mask_prior, self.prior_scale = mask_prior, embedding_prior_scale
        self.analytic_kl, self.gradient = analytic_kl, gradient
        if masked:
            self.mask_logits = nn.Parameter(torch.full((n_tokens, n_latent), float(mask_start)))
        # what embeddings are multiplied by, see calibrate_sizes
        self.register_buffer("size", torch.ones(n_tokens))
        if guide == "correlated":
            n_input = (n_latent if masked else 0) + n_tokens
            self.network = GaussianEncoder(n_input, n_latent, n_hidden, n_layers)
        else:
            self.location = nn.Parameter(embedding_start * torch.randn(n_tokens, n_latent))
            self.log_scale = nn.Parameter(torch.full((n_tokens, n_latent), scale_start).log())

    def mask_prior_of(self, tokens: Tensor) -> float | Tensor:
        """Prior probability of the masks of tokens, one number or (n, n_latent)."""
        return self.mask_prior

    def prior_scale_of(self, tokens: Tensor) -> float | Tensor:
        """Prior standard deviation of the embeddings of tokens, one number or (n, n_latent)."""
        return self.prior_scale

    def embedding(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (..., n, n_latent), of the embeddings of tokens (n,) given their masks."""
        if self.guide == "correlated":
            code = F.one_hot(tokens, self.n_tokens).to(self.network.mean.weight)
            if mask is not None:
                code = torch.cat([mask, code.expand(*mask.shape[:-1], -1)], -1)
            mean, variance = self.network(code)
            return mean, variance.sqrt()
        location, scale = self.location[tokens], self.log_scale[tokens].exp() + _SMALLEST_SCALE
        if self.guide == "spike-and-slab" and mask is not None:
            # what an embedding is where its mask is off changes nothing; only the KL divergence knows of it
            return location.expand_as(mask), scale.expand_as(mask)
        return location, scale

    def draw(self, tokens: Tensor, n_particles: int = 1) -> MechanismDraw:
        """Draw masks and embeddings of tokens (n,); equal tokens are drawn independently."""
        shape = (n_particles, len(tokens), self.n_latent)
        mask = None
        if self.masked:
            logits = self.mask_logits[tokens]
            uniform = torch.rand(shape, device=logits.device, dtype=logits.dtype)
            mask = straight_through_bernoulli(logits, uniform, self.gradient)
        mean, scale = self.embedding(tokens, mask)
        noise = torch.randn(shape, device=mean.device, dtype=mean.dtype)
        value = mean + scale * noise
        kl = (
            self._kl_exact(tokens, mean, scale)
            if self.analytic_kl
            else self._kl_drawn(tokens, mask, value, mean, scale)
        )
        shift = self.size[tokens][:, None] * (value if mask is None else mask * value)
        return MechanismDraw(shift, kl.expand(n_particles, -1))

    def _kl_exact(self, tokens: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        prior_scale = self.prior_scale_of(tokens)
        kl = kl_standard_normal(mean / prior_scale, (scale / prior_scale).square())
        if not self.masked:
            return kl.sum(-1)
        logits = self.mask_logits[tokens]
        if self.guide == "spike-and-slab":
            kl = torch.sigmoid(logits) * kl
        return kl.sum(-1) + kl_bernoulli(logits, self.mask_prior_of(tokens)).sum(-1)

    def _kl_drawn(self, tokens: Tensor, mask: Tensor | None, value: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        kl = log_normal(value, mean, scale) - log_normal(value, 0.0, self.prior_scale_of(tokens))
        if mask is None:
            return kl.sum(-1)
        if self.guide == "spike-and-slab":
            kl = mask * kl
        logits = self.mask_logits[tokens]
        return (
            kl + log_bernoulli(mask, logits) - log_bernoulli(mask, prior_logits(self.mask_prior_of(tokens), logits))
        ).sum(-1)

    def scale_embeddings(self, factor: Tensor) -> None:
        """Multiply the shifts of the first n tokens by (n,) factors, from now on and in all predictions."""
        self.size[: len(factor)] *= factor.to(self.size)

    def probability(self, tokens: Tensor) -> Tensor:
        """(n, n_latent) probability that the mask of each token is on; 1 without masks."""
        if not self.masked:
            return torch.ones(len(tokens), self.n_latent, device=tokens.device)
        return torch.sigmoid(self.mask_logits[tokens])

    def expected_shift(self, tokens: Tensor) -> Tensor:
        """(n, n_latent) expected mask times embedding of tokens (n,).

        With the correlated guide, the embedding is that of the most probable mask, for there is no closed form.
        """
        probability = self.probability(tokens)
        mask = (probability > 0.5).to(probability) if self.masked else None
        return self.size[tokens][:, None] * probability * self.embedding(tokens, mask)[0]

    def shift_from_noise(self, tokens: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """(n, n_latent) a draw of the shifts of tokens (n,) from given random numbers of the same shape."""
        mask = straight_through_bernoulli(self.mask_logits[tokens], uniform) if self.masked else None
        mean, scale = self.embedding(tokens, mask)
        value = self.size[tokens][:, None] * (mean + scale * normal)
        return value if mask is None else mask * value


def noise_of_token(token: int, seed: int, n: int) -> tuple[Tensor, Tensor]:
    """(n,) uniform and (n,) normal numbers that belong to a token and a draw."""
    generator = torch.Generator().manual_seed((seed ^ ((token + 1) * 0x9E3779B1)) % 2**63)
    return torch.rand(n, generator=generator), torch.randn(n, generator=generator)
