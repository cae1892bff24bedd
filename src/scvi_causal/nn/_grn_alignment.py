"""Losses that tie the mask of a perturbation subspace with one coordinate per gene to what perturbations do to genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def accumulate_hops(weight: Tensor, start: Tensor, n_hops: int) -> Tensor:
    r"""What arrives at each node over paths of up to ``n_hops + 1`` edges.

    .. math::
        D\left(W + W^2/T + \dots + W^{K+1}/T^K\right) = \sum_k C_k, \quad C_0 = DW, \quad C_k = C_{k-1} W / T

    The sum of powers is never formed: only the rows that ``start`` asks for.

    Parameters
    ----------
    weight
        (T, T) weights of edges, row to column.
    start
        (n, T) or, where only the first nodes can be perturbed, (n, m) dosages.
    n_hops
        K.

    Returns
    -------
    (n, T)

    Examples
    --------
    >>> import torch
    >>> accumulate_hops(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.eye(2), n_hops=5)
    tensor([[1.7500, 1.7500],
            [3.5000, 1.7500]])
    """
    arrived = start @ weight[: start.shape[1]]
    total = arrived
    for _ in range(n_hops):
        arrived = arrived @ weight / len(weight)
        total = total + arrived
    return total


def published_alignment(weight: Tensor, dosage: Tensor, change: Tensor, threshold: float, n_hops: int) -> Tensor:
    r"""Mean distance of accumulated weights from the absolute change of expression above a threshold, cell by cell.

    .. math::
        \frac{1}{nT} \sum_{ij} \left| (DS)_{ij} - (|\Delta x_{ij}| - c) \right|

    Its optimum, without hops, is the median over the cells of a perturbation: an edge is where that exceeds the threshold. The direction
    of the change is lost.

    Parameters
    ----------
    weight
        (T, T) log odds of edges.
    dosage
        (n, m) of the first m nodes, those that can be perturbed.
    change
        (n, T) absolute differences of log expression from a control cell.
    threshold, n_hops
        c and K.

    Examples
    --------
    >>> import torch
    >>> weight, change = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.5, 1.2]])
    >>> round(100 * float(published_alignment(weight, torch.tensor([[1.0, 0.0]]), change, 0.8, 5)), 3)
    170.0
    """
    # cells of one perturbation have the same sum: as many rows as there are tokens in the batch
    used = (dosage != 0).any(0).nonzero().squeeze(1)
    start = torch.eye(dosage.shape[1], device=dosage.device, dtype=dosage.dtype)[used]
    found = dosage[:, used] @ accumulate_hops(weight, start, n_hops)
    return (found - (change - threshold)).abs().mean()


def edge_density(logits: Tensor) -> Tensor:
    """Mean probability of an edge, the published penalty on the number of edges.

    Examples
    --------
    >>> import torch
    >>> round(5 * float(edge_density(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))), 6)
    3.264819
    """
    return torch.sigmoid(logits).mean()


def effect_alignment(mean: Tensor, variance: Tensor, effect: Tensor, noise: Tensor) -> Tensor:
    r"""Expected misfit of effects in units of their standard errors.

    .. math::
        \tfrac12 \sum_k \frac{(y_k - \mu_k)^2 + \sigma^2_k}{v_k}

    Signed, once per pair of a perturbation and a node instead of once per cell, and an effect counts by how well it is known.

    Parameters
    ----------
    mean, variance
        (..., T) what is believed of the effects.
    effect, noise
        (..., T) estimates and their sampling variances; infinity where there is none.

    Returns
    -------
    (...,)

    Examples
    --------
    >>> import torch
    >>> one = torch.ones(2)
    >>> float(effect_alignment(one, 0 * one, 3 * one, torch.tensor([0.5, torch.inf])))
    4.0
    """
    return 0.5 * (((effect - mean).square() + variance) / noise).sum(-1)
