"""The models: one folder per method, all on the same base."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import CausalModel, CausalModule, CounterfactualOutput
    from .baselines import Additive, ControlMean, LinearEffect, NearestPerturbation, PerturbedMean
    from .cradlevae import CRADLEVAE
    from .gim import GIM
    from .gpovae import GPOVAE
    from .samsvae import SAMSVAE
    from .sccvae import SCCVAE
    from .vci import VCI, GraphVCI, refine_grn

_HOME = {
    "CausalModel": "base",
    "CausalModule": "base",
    "CounterfactualOutput": "base",
    "Additive": "baselines",
    "ControlMean": "baselines",
    "LinearEffect": "baselines",
    "NearestPerturbation": "baselines",
    "PerturbedMean": "baselines",
    "CRADLEVAE": "cradlevae",
    "GIM": "gim",
    "GPOVAE": "gpovae",
    "SAMSVAE": "samsvae",
    "SCCVAE": "sccvae",
    "VCI": "vci",
    "GraphVCI": "vci",
    "refine_grn": "vci",
}

__all__ = [
    "CRADLEVAE",
    "GIM",
    "GPOVAE",
    "SAMSVAE",
    "SCCVAE",
    "VCI",
    "Additive",
    "CausalModel",
    "CausalModule",
    "ControlMean",
    "CounterfactualOutput",
    "GraphVCI",
    "LinearEffect",
    "NearestPerturbation",
    "PerturbedMean",
    "refine_grn",
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
