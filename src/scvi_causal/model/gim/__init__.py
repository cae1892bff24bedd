"""GIM: a causal graph, and distributions over interventions from the features of perturbations."""

from __future__ import annotations

from ._model import GIM

__all__ = ["GIM"]
