"""How models are trained: the plans and the guard against numbers that are none."""

from scvi_causal.train._adversarial import AdversarialCausalTrainingPlan
from scvi_causal.train._nan_guard import NaNGuard, NonFiniteError, find_non_finite
from scvi_causal.train._plan import CausalTrainingPlan

__all__ = ["AdversarialCausalTrainingPlan", "CausalTrainingPlan", "NaNGuard", "NonFiniteError", "find_non_finite"]
