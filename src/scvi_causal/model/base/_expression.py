"""Expression as networks see it, and rates as counts are drawn from: what modules on counts share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scvi import REGISTRY_KEYS

from scvi_causal._constants import NORMALIZED_TOTAL
from scvi_causal.model.base._module import CausalModule

if TYPE_CHECKING:
    from torch import Tensor

_LOWEST_RATE = 1e-4  # counts per 10,000: keeps logarithms and ratios finite
_SHARPNESS = 10.0  # of the soft floor at zero expression


class ExpressionModule(CausalModule):
    """A module whose networks see log1p of counts per 10,000, or continuous data as they are.

    Attributes
    ----------
    log_normalize
        Whether the data are counts.
    """

    log_normalize: bool

    def library(self, tensors: dict[str, Tensor], prefix: str = "") -> Tensor:
        """(cells, 1) library: the size factor where one is registered, else the total counts."""
        size = tensors.get(prefix + REGISTRY_KEYS.SIZE_FACTOR_KEY)
        if size is not None:
            return size.reshape(-1, 1).float()
        return tensors[prefix + REGISTRY_KEYS.X_KEY].sum(1, keepdim=True).clamp_min(1.0)

    def log_expression(self, x: Tensor, library: Tensor) -> Tensor:
        """(cells, genes) log1p of counts per 10,000; continuous data as they are."""
        return torch.log1p(x * (NORMALIZED_TOTAL / library)) if self.log_normalize else x

    def rate(self, eta: Tensor) -> Tensor:
        """(cells, genes) counts per 10,000 at log1p expression ``eta``, softly kept above zero."""
        return torch.expm1(F.softplus(eta, beta=_SHARPNESS)) + _LOWEST_RATE
