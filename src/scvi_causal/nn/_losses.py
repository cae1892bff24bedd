"""Losses on populations and on latent variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def gaussian_mmd(x: Tensor, y: Tensor, bandwidths: Tensor) -> Tensor:
    r"""Squared maximum mean discrepancy under a sum of Gaussian kernels, group by group.

    The biased V-statistic with :math:`k(a, b) = \sum_i \exp(-\|a - b\|^2 / \sigma_i)`. Squared distances come from
    Gram matrices: nothing of the size cells x cells x genes is made.

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
    # distances do not change with the origin, and the Gram form loses digits far from it
    origin = torch.cat([x, y], dim=-2).mean(-2, keepdim=True).detach()
    x, y = x - origin, y - origin
    within, between = _mean_kernel(x, x, bandwidths) + _mean_kernel(y, y, bandwidths), _mean_kernel(x, y, bandwidths)
    return (within - 2 * between).clamp_min(0.0)


def _mean_kernel(x: Tensor, y: Tensor, bandwidths: Tensor) -> Tensor:
    """(...) mean over all pairs of cells of x and y."""
    norm_x, norm_y = x.square().sum(-1).unsqueeze(-1), y.square().sum(-1).unsqueeze(-2)
    distance = (norm_x + norm_y - 2 * (x @ y.transpose(-1, -2))).clamp_min(0.0)
    return torch.exp(-distance.unsqueeze(-1) / bandwidths).sum(-1).mean((-2, -1))


def kl_standard_normal(mean: Tensor, variance: Tensor) -> Tensor:
    """KL divergence of N(mean, variance) from N(0, 1), per entry."""
    return 0.5 * (variance + mean.square() - 1.0 - variance.log())
