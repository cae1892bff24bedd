"""Networks of the SAMS-VAE family: residual blocks, Gaussian heads, and the decoder of counts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALLEST_VARIANCE = 1e-4


class ResidualMLP(nn.Module):
    """Blocks of one width; from the second on, what enters a block is added to what leaves it.

    Parameters
    ----------
    n_input, n_hidden, n_layers
        Width of the input and of the blocks, and their number.
    """

    def __init__(self, n_input: int, n_hidden: int, n_layers: int):
        super().__init__()
        widths = [n_input] + [n_hidden] * n_layers
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(..., n_hidden)"""
        x = F.leaky_relu(self.layers[0](x), 0.01)
        for layer in self.layers[1:]:
            x = F.leaky_relu(layer(x), 0.01) + x
        return x


class GaussianEncoder(nn.Module):
    """Mean and variance of a diagonal Gaussian.

    Parameters
    ----------
    n_input, n_output, n_hidden, n_layers
        Sizes.
    """

    def __init__(self, n_input: int, n_output: int, n_hidden: int, n_layers: int):
        super().__init__()
        self.hidden = ResidualMLP(n_input, n_hidden, n_layers)
        self.mean = nn.Linear(n_hidden, n_output)
        self.log_variance = nn.Linear(n_hidden, n_output)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., n_output) mean and variance."""
        hidden = self.hidden(x)
        # beyond this range float32 overflows; no variance of a standardised latent is there
        return self.mean(hidden), self.log_variance(hidden).clamp(-30.0, 30.0).exp() + _SMALLEST_VARIANCE


class CountDecoder(nn.Module):
    r"""Shares of the genes in the library: a softmax over genes.

    Parameters
    ----------
    n_input, n_genes, n_hidden, n_layers
        Sizes.
    n_covariates
        Number of covariates, which shift the log shares and enter the blocks.
    linear
        Whether the latent variables also act on the log shares directly, beside the blocks, which then start at nothing.
    rest
        Whether there is one more share, for the genes that are not in the panel; it is not returned.
    """

    def __init__(
        self,
        n_input: int,
        n_genes: int,
        n_hidden: int,
        n_layers: int,
        n_covariates: int = 0,
        linear: bool = False,
        rest: bool = False,
    ):
        super().__init__()
        n_output = n_genes + int(rest)
        self.n_genes, self.n_covariates, self.rest = n_genes, n_covariates, rest
        self.hidden = ResidualMLP(n_input + n_covariates, n_hidden, n_layers)
        self.output = nn.Linear(n_hidden, n_output)
        self.covariates = nn.Linear(n_covariates, n_output, bias=False) if n_covariates else None
        self.loadings = nn.Linear(n_input, n_output, bias=False) if linear else None
        if linear:
            nn.init.zeros_(self.output.weight)
            nn.init.normal_(self.loadings.weight, std=0.1)
        if n_covariates:
            nn.init.zeros_(self.covariates.weight)

    def blocks(self, u: Tensor, covariates: Tensor | None) -> Tensor:
        """(..., n_output) what the blocks say."""
        if self.n_covariates:
            u = torch.cat([u, covariates.expand(*u.shape[:-1], -1)], -1)
        return self.output(self.hidden(u))

    def forward(self, u: Tensor, covariates: Tensor | None = None, remainder: Tensor | None = None) -> Tensor:
        """(..., n_genes) log shares of genes in the library.

        Parameters
        ----------
        u
            (..., n_input) latent variables.
        covariates
            (cells, n_covariates), broadcast over leading dimensions.
        remainder
            (..., n_genes) added to the log shares before these are made to add up to 1.
        """
        raw = self.blocks(u, covariates)
        if self.loadings is not None:
            raw = raw + self.loadings(u)
        if self.n_covariates:
            raw = raw + self.covariates(covariates)
        if remainder is not None:
            raw = raw + F.pad(remainder, (0, int(self.rest)))
        return torch.log_softmax(raw, -1)[..., : self.n_genes]
