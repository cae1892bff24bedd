"""What kinds of failure do in latent space: one dense embedding each, shared by all cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scvi_causal.model.samsvae._mechanisms import noise_of_token
from scvi_causal.model.samsvae._network import GaussianEncoder
from scvi_causal.nn import kl_standard_normal
from scvi_causal.nn._masks import log_normal

_SMALLEST_SCALE = 1e-4
_NOISE = 1 << 40  # no token has this number


class Artifacts(nn.Module):
    r"""Embeddings :math:`A_k \sim N(0, \sigma_A^2)` of kinds of failure, and what is believed of them: a Gaussian each.

    Parameters
    ----------
    n_kinds, n_latent
        Sizes.
    prior_scale
        :math:`\sigma_A`.
    network
        Whether mean and variance are the output of a network of constants (as published: of ones, where there is one kind), or
        parameters themselves, which is the same family with a hundredth of the parameters.
    analytic_kl
        Whether KL divergences are exact, or differences of log densities at the draw.
    n_hidden, n_layers
        Of the network.
    """

    def __init__(
        self,
        n_kinds: int,
        n_latent: int,
        *,
        prior_scale: float = 1.0,
        network: bool = False,
        analytic_kl: bool = True,
        n_hidden: int = 400,
        n_layers: int = 4,
    ):
        super().__init__()
        self.n_kinds, self.n_latent = n_kinds, n_latent
        self.prior_scale, self.analytic_kl = prior_scale, analytic_kl
        if network:
            # one kind: a constant as wide as the latent space; several need to be told apart
            code = torch.ones(1, n_latent) if n_kinds == 1 else torch.eye(n_kinds)
            self.register_buffer("code", code, persistent=False)
            self.network = GaussianEncoder(code.shape[1], n_latent, n_hidden, n_layers)
        else:
            self.network = None
            self.location = nn.Parameter(torch.zeros(n_kinds, n_latent))
            self.log_scale = nn.Parameter(torch.zeros(n_kinds, n_latent))

    def belief(self) -> tuple[Tensor, Tensor]:
        """(n_kinds, n_latent) mean and standard deviation."""
        if self.network is not None:
            mean, variance = self.network(self.code)
            return mean, variance.sqrt()
        return self.location, self.log_scale.exp() + _SMALLEST_SCALE

    def draw(self, n_particles: int, n_cells: int = 1) -> tuple[Tensor, Tensor]:
        """(n_particles, n_cells, n_kinds, n_latent) draws, and their KL divergence from the prior (n_particles, n_cells, n_kinds)."""
        mean, scale = self.belief()
        value = mean + scale * torch.randn(n_particles, n_cells, *mean.shape, device=mean.device, dtype=mean.dtype)
        if self.analytic_kl:
            kl = kl_standard_normal(mean / self.prior_scale, (scale / self.prior_scale).square()).sum(-1)
            return value, kl.expand(n_particles, n_cells, -1)
        return value, (log_normal(value, mean, scale) - log_normal(value, 0.0, self.prior_scale)).sum(-1)

    def values(self, seed: int | None = None) -> Tensor:
        """(n_kinds, n_latent) expectations, or draws that belong to ``seed``."""
        mean, scale = self.belief()
        if seed is None or not self.n_kinds:
            return mean
        noise = [noise_of_token(_NOISE + kind, seed, self.n_latent)[1] for kind in range(self.n_kinds)]
        return mean + scale * torch.stack(noise).to(mean)


def of_quality(values: Tensor, quality: Tensor) -> Tensor:
    """(..., n_latent) the artifact of quality classes (...,) out of ``values`` (..., n_kinds, n_latent); nothing for cells that pass.

    Examples
    --------
    >>> import torch
    >>> of_quality(torch.tensor([[1.0, 2.0], [5.0, 6.0]]), torch.tensor([0, 2])).tolist()
    [[0.0, 0.0], [5.0, 6.0]]
    """
    n_kinds = values.shape[-2]
    on = F.one_hot(quality, n_kinds + 1)[..., 1:].to(values)
    return (on[..., None] * values).sum(-2)
