"""The models: one folder per method, all on the same base."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import CausalModel, CausalModule, CounterfactualOutput
    from .baselines import Additive, ControlMean, LinearEffect, NearestPerturbation, PerturbedMean
    from .gim import GIM
    from .sccvae import SCCVAE
    from .vci import VCI

_HOME = {
    "CausalModel": "base",
    "CausalModule": "base",
    "CounterfactualOutput": "base",
    "Additive": "baselines",
    "ControlMean": "baselines",
    "LinearEffect": "baselines",
    "NearestPerturbation": "baselines",
    "PerturbedMean": "baselines",
    "GIM": "gim",
    "SCCVAE": "sccvae",
    "VCI": "vci",
}

__all__ = [
    "GIM",
    "SCCVAE",
    "VCI",
    "Additive",
    "CausalModel",
    "CausalModule",
    "ControlMean",
    "CounterfactualOutput",
    "LinearEffect",
    "NearestPerturbation",
    "PerturbedMean",
]


def __getattr__(name: str):
    """Import a method when it is first used, so that one method never pays for another."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
