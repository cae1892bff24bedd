"""Counterfactual single-cell expression under perturbations, in one scvi-tools API."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import benchmark, data, datasets, effects, metrics, model, pl
    from .model import (
        CRADLEVAE,
        GIM,
        GPOVAE,
        SAMSVAE,
        SCCVAE,
        VCI,
        Additive,
        ControlMean,
        GraphVCI,
        LinearEffect,
        NearestPerturbation,
        PerturbedMean,
        refine_grn,
    )

try:
    __version__ = version("scvi-causal")
except PackageNotFoundError:  # run from the sources, without an installation
    __version__ = "0+unknown"

_NAMESPACES = ("benchmark", "data", "datasets", "effects", "metrics", "model", "pl")
_FROM_MODEL = (
    "CRADLEVAE",
    "GIM",
    "GPOVAE",
    "SAMSVAE",
    "SCCVAE",
    "VCI",
    "Additive",
    "ControlMean",
    "GraphVCI",
    "LinearEffect",
    "NearestPerturbation",
    "PerturbedMean",
    "refine_grn",
)

__all__ = [
    "CRADLEVAE",
    "GIM",
    "GPOVAE",
    "SAMSVAE",
    "SCCVAE",
    "VCI",
    "Additive",
    "ControlMean",
    "GraphVCI",
    "LinearEffect",
    "NearestPerturbation",
    "PerturbedMean",
    "benchmark",
    "data",
    "datasets",
    "effects",
    "metrics",
    "model",
    "pl",
    "refine_grn",
]


def __getattr__(name: str):
    """Import models and namespaces when they are first used: scvi-tools takes seconds to import."""
    if name in _NAMESPACES:
        return import_module(f"{__name__}.{name}")
    if name in _FROM_MODEL:
        found = getattr(import_module(f"{__name__}.model"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
