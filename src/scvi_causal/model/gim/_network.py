"""From the features of a perturbation to a distribution over interventions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import softplus

if TYPE_CHECKING:
    from torch import Tensor

_START_PROBABILITY = 0.3
_SMALL = 0.01


class InterventionNetwork(nn.Module):
    """Log odds of being a target and size of the intervention, for each node: a linear map plus a small network.

    The linear part extrapolates to new perturbations, the network bends it to dosages.

    Parameters
    ----------
    n_features
        Length of a feature vector.
    n_nodes
        Number of nodes.
    n_hidden
        Units of each of the two hidden layers.
    dropout_rate
        Of the hidden layers.
    own_node
        Whether a perturbation may be of a node itself (a knock-out of a gene that is a node): log odds and size of *that* node
        then get an own term, the same for all perturbations, which also an unseen one has.
    """

    def __init__(
        self, n_features: int, n_nodes: int, n_hidden: int = 128, dropout_rate: float = 0.1, own_node: bool = False
    ):
        super().__init__()
        self.linear = nn.Linear(n_features, 2 * n_nodes, bias=False)
        hidden = [nn.Linear(n_features, n_hidden), nn.Linear(n_hidden, n_hidden)]
        self.body = nn.Sequential(*(part for layer in hidden for part in (layer, nn.SiLU(), nn.Dropout(dropout_rate))))
        self.head = nn.Linear(n_hidden, 2 * n_nodes)
        with torch.no_grad():
            self.linear.weight.mul_(_SMALL)
            self.head.weight.mul_(_SMALL)
            self.head.bias.zero_()
            self.head.bias[:n_nodes] = math.log(_START_PROBABILITY / (1 - _START_PROBABILITY))
        self.own_logit = nn.Parameter(torch.zeros(()), requires_grad=own_node)
        self.own_size = nn.Parameter(torch.zeros(()), requires_grad=own_node)

    def decayed(self) -> list[nn.Parameter]:
        """Parameters that weight decay may pull to zero: matrices, not biases."""
        return [p for p in self.parameters() if p.ndim == 2]

    def forward(self, features: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Interventions of a list of perturbations.

        Parameters
        ----------
        features
            (n, n_features)
        own
            (n, n_nodes) 1 where the perturbation is of the node itself.

        Returns
        -------
        (n, n_nodes) log odds and sizes.
        """
        logit, size = (self.linear(features) + self.head(self.body(features))).chunk(2, dim=-1)
        return logit + self.own_logit * own, size + self.own_size * own


def combine(logit: Tensor, size: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    r"""Interventions of combinations from those of their parts.

    A node is a target if any part hits it, :math:`\pi = 1 - \prod_u (1 - \pi_u)`, and the size is such that expected
    interventions add up, :math:`\pi s = \sum_u \pi_u s_u`.

    Parameters
    ----------
    logit, size
        (..., n_parts, d) log odds and sizes of the parts.
    members
        (n, n_parts) 1 where a combination has the part.

    Returns
    -------
    (..., n, d) log odds and sizes; for combinations of one part those of the part.

    Examples
    --------
    >>> import torch
    >>> logit, size = torch.zeros(2, 1), torch.tensor([[1.0], [3.0]])
    >>> a, s = combine(logit, size, torch.tensor([[1.0, 1.0]]))
    >>> round(float(torch.sigmoid(a)), 4), round(float(torch.sigmoid(a) * s), 4)
    (0.75, 2.0)
    """
    single = members.sum(1) == 1
    which = members.argmax(1)
    if bool(single.all()):
        return logit[..., which, :], size[..., which, :]
    missed = members @ softplus(logit)  # minus the log probability that no part hits
    log_hit = torch.log(-torch.expm1(-missed.clamp_min(1e-30)))
    combined = log_hit + missed
    expected = members @ (torch.sigmoid(logit) * size)
    sizes = expected * torch.exp(-log_hit)
    alone = single[:, None]
    return torch.where(alone, logit[..., which, :], combined), torch.where(alone, size[..., which, :], sizes)
