"""Losses on populations and on latent variables."""

from __future__ import annotations

import math
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


def kl_normal(mean: Tensor, scale: Tensor, other_mean: Tensor, other_scale: Tensor) -> Tensor:
    """KL divergence of N(mean, scale²) from N(other_mean, other_scale²), per entry.

    Examples
    --------
    >>> import torch
    >>> one, two = torch.tensor(1.0), torch.tensor(2.0)
    >>> round(float(kl_normal(one, two, 0 * one, two)), 4)
    0.125
    """
    ratio = (scale / other_scale).square()
    return 0.5 * (((mean - other_mean) / other_scale).square() + ratio - 1.0 - ratio.log())


def published_divergence(mean: Tensor, scale: Tensor, other_mean: Tensor, other_scale: Tensor) -> Tensor:
    """What the code of VCI has in the place of :func:`kl_normal`: the distance of the means is not divided by the variance."""
    ratio = (scale / other_scale).square()
    return 0.5 * ((mean - other_mean).square() + ratio - 1.0 - ratio.log())


def matched_log_kernel(predicted: Tensor, mean: Tensor, variance: Tensor, bandwidth: float = 1.0) -> Tensor:
    r"""Negative log of a Gaussian kernel around reference cells, averaged over the cells and genes: the ``match`` loss of VCI.

    .. math::
        \tfrac12 \ln(2\pi h^2) + \frac{1}{K} \sum_k \frac{1}{G} \sum_g \frac{(\hat y_g - y_{kg})^2}{2 h^2}
        = \tfrac12 \ln(2\pi h^2) + \frac{1}{G} \sum_g \frac{(\hat y_g - m_g)^2 + v_g}{2 h^2}

    The mean of log kernels needs of the reference cells their mean and variance only; its gradient is that of the squared
    distance from the mean.

    Parameters
    ----------
    predicted
        (cells, genes)
    mean, variance
        (cells, genes) of the reference cells of each predicted cell; the variance divided by their number.
    bandwidth
        Standard deviation h of the kernel.

    Returns
    -------
    (cells,)
    """
    quadratic = ((predicted - mean).square() + variance).mean(-1) / (2 * bandwidth**2)
    return quadratic + 0.5 * math.log(2 * math.pi * bandwidth**2)


def kernel_density_loss(predicted: Tensor, reference: Tensor, bandwidth: float = 1.0) -> Tensor:
    """Negative log of a kernel density estimate, gene by gene: what :func:`matched_log_kernel` is a bound of.

    Parameters
    ----------
    predicted
        (cells, genes)
    reference
        (cells, K, genes) reference cells of each.
    bandwidth
        Standard deviation of the kernel.

    Returns
    -------
    (cells,) mean over genes.
    """
    log_kernel = -(predicted.unsqueeze(-2) - reference).square() / (2 * bandwidth**2)
    density = torch.logsumexp(log_kernel, -2) - math.log(reference.shape[-2])
    return 0.5 * math.log(2 * math.pi * bandwidth**2) - density.mean(-1)


def grouped_energy_distance(x: Tensor, y: Tensor, group_x: Tensor, group_y: Tensor) -> Tensor:
    r"""Energy distance of two populations in each group, :math:`2 E\|x - y\| - E\|x - x'\| - E\|y - y'\|`.

    Means over all pairs, a cell and itself included (V-statistic). Distances come from Gram matrices.

    Parameters
    ----------
    x, y
        (n, genes) and (m, genes) cells.
    group_x, group_y
        (n,) and (m,) group of each cell.

    Returns
    -------
    (n_groups,) of the groups that have cells on both sides, in increasing order; at least 0.

    Examples
    --------
    >>> import torch
    >>> x, group = torch.tensor([[0.0], [1.0]]), torch.tensor([4, 4])
    >>> grouped_energy_distance(x, x + 1.0, group, group).round(decimals=3).tolist()
    [1.0]
    """
    groups = torch.unique(group_x)
    groups = groups[torch.isin(groups, group_y)]
    of_x, of_y = (_shares(groups, group, x.dtype) for group in (group_x, group_y))
    origin = torch.cat([x, y]).mean(0, keepdim=True).detach()
    x, y = x - origin, y - origin

    def mean_distance(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
        squared = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2.0 * (a @ b.T)
        # a tiny number under the root keeps the derivative finite where cells coincide
        return ((of_a @ squared.clamp_min(1e-12).sqrt()) * of_b).sum(1)

    between = mean_distance(x, y, of_x, of_y)
    return 2.0 * between - mean_distance(x, x, of_x, of_x) - mean_distance(y, y, of_y, of_y)


def _shares(groups: Tensor, of: Tensor, dtype: torch.dtype) -> Tensor:
    """(n_groups, n) weights that average over the members of each group."""
    member = (groups[:, None] == of[None]).to(dtype)
    return member / member.sum(1, keepdim=True).clamp_min(1.0)
