"""Sparse binary masks with straight-through gradients, and the KL divergences of spike-and-slab variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

MaskGradient = Literal["mean", "relaxed"]

_SMALLEST = 1e-6  # of a uniform number, which keeps its logit finite


def straight_through_bernoulli(
    logits: Tensor, uniform: Tensor, gradient: MaskGradient = "mean", temperature: float = 1.0
) -> Tensor:
    r"""Draw zeros and ones; the gradient passes as if the draw were a probability.

    Parameters
    ----------
    logits
        (...) log odds :math:`\lambda` of a one.
    uniform
        Uniform numbers on [0, 1) in the shape of the draw, to which ``logits`` is broadcast.
    gradient
        What stands in for the draw in the backward pass. ``"mean"``: :math:`\sigma(\lambda)`, so that the gradient of a linear
        function is right. ``"relaxed"``: the relaxed draw :math:`s = \sigma((\lambda + \mathrm{logit}\,u)/\tau)` (as published for
        SAMS-VAE), whose gradient :math:`s(1 - s)/\tau` is on average 2/3 of the right one at even odds and up to 2.8 times it at small
        probabilities.
    temperature
        :math:`\tau`.

    Returns
    -------
    Draws in {0, 1}; a one where :math:`\lambda + \mathrm{logit}\,u > 0`.

    Examples
    --------
    >>> import torch
    >>> logits = torch.zeros(3, requires_grad=True)
    >>> draw = straight_through_bernoulli(logits, torch.tensor([0.1, 0.6, 0.9]))
    >>> draw.sum().backward()
    >>> draw.tolist(), logits.grad.tolist()
    ([0.0, 1.0, 1.0], [0.25, 0.25, 0.25])
    """
    u = uniform.clamp(_SMALLEST, 1.0 - _SMALLEST)
    noisy = (logits + torch.log(u) - torch.log1p(-u)) / temperature
    soft = torch.sigmoid(noisy) if gradient == "relaxed" else torch.sigmoid(logits).expand_as(noisy)
    hard = (noisy > 0).to(soft)
    return hard + (soft - soft.detach())


def log_bernoulli(draw: Tensor, logits: Tensor) -> Tensor:
    """Log probability of zeros and ones; differentiable in the draw, as straight-through gradients need it."""
    return draw * logits - F.softplus(logits)


def kl_bernoulli(logits: Tensor, prior: float | Tensor) -> Tensor:
    r"""KL divergence of Bernoulli(:math:`\sigma(\lambda)`) from Bernoulli(``prior``), per entry.

    Examples
    --------
    >>> import torch
    >>> round(float(kl_bernoulli(torch.zeros(()), 0.01)), 6)
    1.614463
    """
    prior_logit = prior_logits(prior, logits)
    p = torch.sigmoid(logits)
    return p * (logits - prior_logit) - F.softplus(logits) + F.softplus(prior_logit)


def prior_logits(prior: float | Tensor, like: Tensor) -> Tensor:
    """Log odds of probabilities, as a tensor like another."""
    return torch.logit(torch.as_tensor(prior, dtype=torch.float64)).to(like)


def log_normal(x: Tensor, mean: Tensor | float, scale: Tensor | float) -> Tensor:
    """Log density of a normal distribution without its constant, which cancels between two of them."""
    scale = torch.as_tensor(scale, dtype=x.dtype, device=x.device)
    return -0.5 * ((x - mean) / scale).square() - scale.log()
