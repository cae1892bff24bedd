"""The training plan of SAMS-VAE: faster steps for the few global variables, and steps that become small in the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scvi_causal.model.samsvae._fit import count_cells
from scvi_causal.train import CausalTrainingPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from scvi.module.base import BaseModuleClass


class SAMSVAETrainingPlan(CausalTrainingPlan):
    """:class:`~scvi_causal.train.CausalTrainingPlan` with two more options.

    Parameters
    ----------
    module
        Module to train.
    mechanism_lr_factor
        How many times larger the steps of masks and embeddings are. A token is in few cells of a batch, and its log odds have
        a long way to go: with the step of the networks they would stay near their start.
    cosine_decay
        Let all steps become small along a half cosine over the training; what is noise of the steps averages out.
    **kwargs
        As of :class:`~scvi_causal.train.CausalTrainingPlan`.
    """

    def __init__(
        self, module: BaseModuleClass, *, mechanism_lr_factor: float = 1.0, cosine_decay: bool = False, **kwargs
    ):
        super().__init__(module, **kwargs)
        self.mechanism_lr_factor, self.cosine_decay = mechanism_lr_factor, cosine_decay

    def on_fit_start(self) -> None:
        """Count the cells of each token in the validation split, whose loss has its own weights."""
        super().on_fit_start()
        data = self.trainer.datamodule
        rows, manager = getattr(data, "val_idx", None), getattr(data, "adata_manager", None)
        if rows is not None and manager is not None:
            counts = torch.from_numpy(count_cells(manager, rows))
            self.module.validation_cells_per_token.copy_(counts)

    def _optimizer_creator_fn(self, optimizer_cls: type[torch.optim.Optimizer]) -> Callable:
        if self.mechanism_lr_factor == 1.0 or self.module.mechanisms is None:
            return super()._optimizer_creator_fn(optimizer_cls)
        create = super()._optimizer_creator_fn(optimizer_cls)
        fast = {id(p) for p in self.module.global_parameters()}

        def create_two(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
            params = list(params)
            optimizer = create([p for p in params if id(p) not in fast])
            group = {"params": [p for p in params if id(p) in fast], "lr": self.lr * self.mechanism_lr_factor}
            optimizer.add_param_group(group)
            return optimizer

        return create_two

    def configure_optimizers(self) -> dict:
        """The optimizer, with its schedule if there is one."""
        config = super().configure_optimizers()
        if self.cosine_decay:
            n_steps = max(1, int(self.trainer.estimated_stepping_batches))
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(config["optimizer"], n_steps)
            config["lr_scheduler"] = {"scheduler": schedule, "interval": "step"}
        return config
