"""Losses on populations and on latent variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def gaussian_mmd(x: Tensor, y: Tensor, bandwidths: Tensor) -> Tensor:
    r"""Squared maximum mean discrepancy under a sum of Gaussian kernels, group by group.

    The biased V-statistic with :math:`k(a, b) = \sum_i \exp(-\|a - b\|^2 / \sigma_i)`. Squared distances come from one
    Gram matrix of the stacked cells: nothing of the size cells x cells x genes is made.

    Parameters
    ----------
    x, y
        (..., n, genes) and (..., m, genes) two populations; leading dimensions are groups.
    bandwidths
        (n_kernels,) the :math:`\sigma_i`.

    Returns
    -------
    (...) one value per group, at least 0.

    Examples
    --------
    >>> import torch
    >>> x = torch.zeros(1, 1)
    >>> float(gaussian_mmd(x, x, torch.tensor([1.0])))
    0.0
    """
    n = x.shape[-2]
    cells = torch.cat([x, y], dim=-2)
    # distances do not change with the origin, and the Gram form loses digits far from it
    cells = cells - cells.mean(-2, keepdim=True).detach()
    gram = cells @ cells.transpose(-1, -2)
    norm = gram.diagonal(dim1=-2, dim2=-1)
    distance = (norm.unsqueeze(-1) + norm.unsqueeze(-2) - 2 * gram).clamp_min(0.0)
    kernel = _sum_of_gaussians(distance, bandwidths)
    within_x, within_y = kernel[..., :n, :n].mean((-2, -1)), kernel[..., n:, n:].mean((-2, -1))
    return (within_x + within_y - 2 * kernel[..., :n, n:].mean((-2, -1))).clamp_min(0.0)


def _sum_of_gaussians(distance: Tensor, bandwidths: Tensor) -> Tensor:
    total = torch.zeros_like(distance)
    for bandwidth in bandwidths:
        total = total + torch.exp(-distance / bandwidth)
    return total


def kl_standard_normal(mean: Tensor, variance: Tensor) -> Tensor:
    """KL divergence of N(mean, variance) from N(0, 1), per entry."""
    return 0.5 * (variance + mean.square() - 1.0 - variance.log())
