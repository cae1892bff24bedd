"""GPO-VAE: masks of perturbations that are a gene regulatory network."""

from __future__ import annotations

from scvi_causal.model.gpovae._model import GPOVAE

__all__ = ["GPOVAE"]
