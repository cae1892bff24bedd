"""SAMS-VAE: sparse additive mechanism shifts."""

from __future__ import annotations

from scvi_causal.model.samsvae._model import SAMSVAE

__all__ = ["SAMSVAE"]
