"""Variational causal inference."""

from __future__ import annotations

from ._model import VCI

__all__ = ["VCI"]
