"""Checks of an AnnData before anything is written to it."""

from __future__ import annotations


def validate_setup(adata, **kwargs) -> None:
    """Placeholder."""
