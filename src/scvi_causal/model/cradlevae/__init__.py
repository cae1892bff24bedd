"""CRADLE-VAE: SAMS-VAE with an artifact that quality labels switch on."""

from __future__ import annotations

from scvi_causal.model.cradlevae._model import CRADLEVAE

__all__ = ["CRADLEVAE"]
