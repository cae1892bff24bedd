"""What every model is made of."""

from __future__ import annotations

from ._model import CausalModel
from ._module import CausalModule, CounterfactualOutput

__all__ = ["CausalModel", "CausalModule", "CounterfactualOutput"]
