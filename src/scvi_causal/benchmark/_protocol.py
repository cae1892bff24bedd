"""What takes part in a benchmark: anything with ``fit`` and ``predict``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@runtime_checkable
class Predictor(Protocol):
    """Anything that learns from training cells and predicts perturbed cells."""

    def fit(self, adata: AnnData) -> None:
        """Learn from the training cells; ``adata`` is a copy and may be changed."""

    def predict(self, adata: AnnData, targets: Sequence[str]) -> AnnData:
        """Predict cells under every target, starting from the control cells ``adata`` of one context."""


class PredictionError(ValueError):
    """A prediction that cannot be scored; ``kind`` says what is wrong with it."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind
