"""The training plan of CRADLE-VAE: that of SAMS-VAE, with references that are drawn anew each epoch."""

from __future__ import annotations

import numpy as np
import torch
from scvi import settings

from scvi_causal.model.cradlevae._references import ReferencePools, set_references
from scvi_causal.model.samsvae._plan import SAMSVAETrainingPlan


class CRADLEVAETrainingPlan(SAMSVAETrainingPlan):
    """:class:`SAMSVAETrainingPlan` that keeps the reference profiles of the artifact loss up to date.

    As published they are drawn once.
    """

    def on_fit_start(self) -> None:
        """Count the quality classes of the validation split, and find the pools of references."""
        super().on_fit_start()
        data, options = self.trainer.datamodule, self.module.options
        manager = getattr(data, "adata_manager", None)
        self._pools = None
        if manager is None:
            return
        if getattr(data, "val_idx", None) is not None:
            counts = torch.from_numpy(count_quality(manager, data.val_idx, self.module.n_kinds))
            self.module.validation_cells_per_quality.copy_(counts)
        if options.artifact_loss != "none" and options.artifact_loss_weight:
            self._pools = ReferencePools(manager, np.asarray(data.train_idx), options.artifact_loss == "published")
            self._draw(0)

    def on_train_epoch_start(self) -> None:
        """Draw references, the same on all processes."""
        super().on_train_epoch_start()
        if self._pools is not None and self.current_epoch and self.module.options.artifact_loss != "published":
            self._draw(self.current_epoch)

    def _draw(self, epoch: int) -> None:
        if len(self._pools):
            set_references(self.module, self._pools, np.random.default_rng([settings.seed or 0, 6, epoch]))

    def on_fit_end(self) -> None:
        """Let go of the references."""
        super().on_fit_end()
        self._pools = None
        for name in ("reference_expression", "reference_of_cell", "other_quality_of_cell"):
            setattr(self.module, name, getattr(self.module, name)[:0])


def count_quality(manager, rows: np.ndarray, n_kinds: int) -> np.ndarray:
    """(n_kinds + 1,) number of cells among ``rows`` in each quality class."""
    from scvi_causal._constants import CAUSAL_KEYS

    codes = np.asarray(manager.get_from_registry(CAUSAL_KEYS.QUALITY)).ravel()[rows].astype(np.int64)
    return np.bincount(codes, minlength=n_kinds + 1).astype(np.float32)
