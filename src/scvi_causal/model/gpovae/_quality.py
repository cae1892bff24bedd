"""Quality classes that need not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_causal.data.fields import QualityField

if TYPE_CHECKING:
    from anndata import AnnData


class NoQualityField(QualityField):
    """All cells pass, where no column says otherwise."""

    def __init__(self) -> None:
        super().__init__("", "pass")

    def check(self, adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
        """One class, and code 0 for every cell."""
        return np.array([self._pass_category], dtype=object), np.zeros(adata.n_obs, dtype=np.int64)

    @classmethod
    def check_query(cls, adata: AnnData, state_registry: dict) -> np.ndarray:
        """(cells,) zeros."""
        return np.zeros(adata.n_obs, dtype=np.int64)
