r"""Atomic interventions on a linear Gaussian model: their moments in closed form, and unknown targets summed out exactly.

The model is :math:`x = x W + b + \varepsilon` with row vectors, edge i to j in :math:`W_{ij}`, independent noise of standard
deviation :math:`\sigma_j`, and :math:`A = I - W`, so that :math:`x = (b + \varepsilon) A^{-1}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from torch import Tensor


def shift_moments(
    weight: Tensor, intercept: Tensor, noise_sd: Tensor, probability: Tensor, size: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Mean and covariance under shift interventions: node j moves by :math:`s_j` with probability :math:`\pi_j`.

    .. math::
        \mu = (b + \pi \circ s) A^{-1}, \qquad
        \Sigma = A^{-\top}\,\mathrm{diag}\!\left(\sigma^2 + \pi (1 - \pi) s^2\right) A^{-1}

    Parameters
    ----------
    weight
        (d, d) edge weights.
    intercept, noise_sd
        (d,)
    probability, size
        (..., d) chance that each node is a target, and by how much a target is moved. With chances of 0 and 1 the moments of
        one known intervention.

    Returns
    -------
    (..., d) mean and (..., d, d) covariance.

    Examples
    --------
    >>> import torch
    >>> weight = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    >>> mean, _ = shift_moments(
    ...     weight, torch.tensor([1.0, 0.0]), torch.ones(2), torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0])
    ... )
    >>> mean.tolist()
    [4.0, 8.0]
    """
    mean = _solve(weight, intercept + probability * size)
    variance = noise_sd.square() + probability * (1 - probability) * size.square()
    return mean, _covariance(weight, variance)


def hard_moments(
    weight: Tensor, intercept: Tensor, noise_sd: Tensor, targets: Tensor, value: Tensor, value_sd: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Mean and covariance under a hard intervention: a target loses its parents and is drawn from :math:`N(s_j, \nu_j^2)`.

    Parameters
    ----------
    weight
        (d, d) edge weights.
    intercept, noise_sd
        (d,)
    targets
        (d,) 1 for a target, 0 otherwise.
    value, value_sd
        (d,) mean and standard deviation of the targets.

    Returns
    -------
    (d,) mean and (d, d) covariance, of the model with :math:`W\,\mathrm{diag}(1 - I)`.
    """
    cut = weight * (1 - targets)
    mean = _solve(cut, torch.where(targets > 0, value, intercept))
    return mean, _covariance(cut, torch.where(targets > 0, value_sd, noise_sd).square())


def hard_mean(weight: Tensor, intercept: Tensor, probability: Tensor, value: Tensor) -> Tensor:
    r"""Mean under hard interventions on uncertain targets, exact on an acyclic graph.

    Whether a node is hit is independent of its ancestors, so that
    :math:`\mu_j = (1 - \pi_j)(\mu W_{\cdot j} + b_j) + \pi_j s_j`.

    Parameters
    ----------
    weight
        (d, d) edge weights, without cycles.
    intercept
        (..., d) intercepts; with the noise of a cell added, its own counterfactual mean results.
    probability, value
        (..., d) chance that each node is a target, and the mean of a target.

    Returns
    -------
    (..., d)
    """
    flat = torch.broadcast_tensors(intercept, probability, value)
    shape = flat[0].shape
    b, p, s = (t.reshape(-1, shape[-1]) for t in flat)
    system = torch.eye(shape[-1], dtype=weight.dtype, device=weight.device) - weight * (1 - p)[:, None, :]
    right = (1 - p) * b + p * s
    return torch.linalg.solve(system.transpose(-1, -2), right[..., None])[..., 0].reshape(shape)


def _solve(weight: Tensor, right: Tensor) -> Tensor:
    """``right @ (I - W)^-1`` for (..., d) rows."""
    system = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device) - weight
    rows = right.reshape(-1, right.shape[-1])
    return torch.linalg.solve(system, rows, left=False).reshape(right.shape)


def _covariance(weight: Tensor, variance: Tensor) -> Tensor:
    system = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device) - weight
    half = torch.linalg.solve(
        system.expand(*variance.shape[:-1], *system.shape), torch.diag_embed(variance.sqrt()), left=False
    )
    return half.transpose(-1, -2) @ half


# ---------------------------------------------------------------------- unknown targets


def log_marginal(logit: Tensor, log_off: Tensor, log_on: Tensor, sparsity: float = 0.0) -> Tensor:
    r"""Log likelihood of each node with its unknown target indicator summed out.

    .. math::
        \log\left(\pi\,e^{-\lambda}\,p^1 + (1 - \pi)\,p^0\right)

    With independent indicators and all variables observed, the sum over the :math:`2^d` sets of targets is the product of
    these, so that nothing has to be sampled. The price :math:`\lambda` of a target stands *inside* of the sum: as a penalty
    :math:`\lambda \pi` outside it would bound the best :math:`\pi` by :math:`1/\lambda`, whatever the evidence.

    Parameters
    ----------
    logit
        (..., d) log odds of being a target.
    log_off, log_on
        (..., d) log likelihood of the data of a node if it is no target, and if it is one.
    sparsity
        The price, in nats.

    Returns
    -------
    (..., d)
    """
    return torch.logaddexp(logsigmoid(logit) - sparsity + log_on, logsigmoid(-logit) + log_off)


def responsibility(logit: Tensor, log_off: Tensor, log_on: Tensor, sparsity: float = 0.0) -> Tensor:
    r"""Posterior probability of being a target, :math:`\mathrm{sigmoid}(a - \lambda + \log p^1 - \log p^0)`.

    The gradient of :func:`log_marginal` with respect to the logit is this minus the prior probability: a step of EM without
    its loop. Parameters as there.
    """
    return torch.sigmoid(logit - sparsity + log_on - log_off)
