"""Counterfactual single-cell expression under perturbations, in one scvi-tools API."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import benchmark, data, datasets, effects, metrics, model, pl
    from .model import (
        GIM,
        SCCVAE,
        VCI,
        Additive,
        ControlMean,
        LinearEffect,
        NearestPerturbation,
        PerturbedMean,
    )

try:
    __version__ = version("scvi-causal")
except PackageNotFoundError:  # run from the sources, without an installation
    __version__ = "0+unknown"

_NAMESPACES = ("benchmark", "data", "datasets", "effects", "metrics", "model", "pl")
_MODELS = ("GIM", "SCCVAE", "VCI", "Additive", "ControlMean", "LinearEffect", "NearestPerturbation", "PerturbedMean")

__all__ = [
    "GIM",
    "SCCVAE",
    "VCI",
    "Additive",
    "ControlMean",
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
]


def __getattr__(name: str):
    """Import models and namespaces when they are first used: scvi-tools takes seconds to import."""
    if name in _NAMESPACES:
        return import_module(f"{__name__}.{name}")
    if name in _MODELS:
        found = getattr(import_module(f"{__name__}.model"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
