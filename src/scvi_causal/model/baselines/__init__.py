"""Simple baselines as full models: same API, same contract."""

from __future__ import annotations

from ._baselines import Additive, ControlMean, LinearEffect, NearestPerturbation, PerturbedMean

__all__ = ["Additive", "ControlMean", "LinearEffect", "NearestPerturbation", "PerturbedMean"]
