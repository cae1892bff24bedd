"""Training of GIM under scvi-tools: steps on statistics instead of batches, and groups of parameters with schedules of their own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from scvi_causal.dataloaders import CausalDataSplitter
from scvi_causal.model.gim._training_set import CellTrainingSet
from scvi_causal.train import CausalTrainingPlan

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS_PER_EPOCH = 50
_FROZEN = 0.27  # share of the steps in which only the network learns
_LAST_LR = 1 / 30  # of the network, relative to the first
_MIN_NOISE = math.log(0.02)


class Steps:
    """Stands where a loader would: empty batches, one per step."""

    def __init__(self, n_steps: int):
        self.n_steps = n_steps

    def __len__(self) -> int:
        return self.n_steps

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for step in range(self.n_steps):
            yield {"step": torch.full((1,), float(step))}


class StatisticsSplitter(CausalDataSplitter):
    """Splits the cells as for any model; an epoch is one batch that stands for steps on their statistics."""

    def train_dataloader(self) -> Steps:
        """One empty batch."""
        return Steps(1)

    def val_dataloader(self) -> Steps | list:
        """One empty batch, if there are validation cells."""
        return Steps(1) if self.n_val else []


class GIMTrainingPlan(CausalTrainingPlan):
    """Plan that trains the network first, then the causal model with it.

    Steps on statistics take less time than the trainer needs around one; so that many of them are one batch to the trainer.

    Parameters
    ----------
    module
        Module to train.
    lr
        Learning rate of the network, which falls along a cosine.
    causal_lr
        Learning rate of the mechanisms, once they learn.
    weight_decay
        Decoupled weight decay of the matrices of the network; nothing else is decayed.
    **kwargs
        Passed to :class:`~scvi_causal.train.CausalTrainingPlan`.
    """

    def __init__(self, module, *, lr: float = 3e-3, causal_lr: float = 3e-3, weight_decay: float = 1.0, **kwargs):
        super().__init__(module, lr=lr, weight_decay=weight_decay, **kwargs)
        self.causal_lr = causal_lr
        self.on_cells = isinstance(module.training_set, CellTrainingSet)
        self.steps_per_batch = 1 if self.on_cells else STEPS_PER_EPOCH
        self._n_done = 0

    def configure_optimizers(self) -> dict:
        """AdamW on three groups: matrices of the network, the rest of it, the mechanisms."""
        network = self.module.network
        decayed = network.decayed()
        known = {id(p) for p in decayed}
        free = [p for p in network.parameters() if id(p) not in known and p.requires_grad]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": free, "weight_decay": 0.0},
            {"params": list(self.module.mechanisms.parameters()), "weight_decay": 0.0},
        ]
        every = [p for group in groups for p in group["params"]]
        fused = self._can_fuse(every) if self.fused is None else self.fused
        return {"optimizer": torch.optim.AdamW(groups, lr=self.lr, eps=self.eps, fused=fused)}

    def training_step(self, batch, batch_idx):
        """All steps of a batch; the last one is the trainer's."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        for _ in range(self.steps_per_batch - 1):
            self._set_learning_rates(optimizer)
            optimizer.zero_grad(set_to_none=True)
            loss, _ = self.module.training_set.loss(self.module, batch)
            loss.backward()
            self.configure_gradient_clipping(optimizer)
            optimizer.step()
            self._after_step()
        self._set_learning_rates(optimizer)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *args, **kwargs) -> None:
        """Count the trainer's own step."""
        super().on_train_batch_end(*args, **kwargs)
        self._after_step()

    @torch.no_grad()
    def _after_step(self) -> None:
        self._n_done += 1
        self.module.mechanisms.log_sd.clamp_(min=_MIN_NOISE)
        self.module.mechanisms.log_target_sd.clamp_(min=_MIN_NOISE)

    def _set_learning_rates(self, optimizer: torch.optim.Optimizer) -> None:
        n_steps = max(1.0, float(self.trainer.estimated_stepping_batches) * self.steps_per_batch)
        progress = min(1.0, self._n_done / n_steps)
        of_network = self.lr * (_LAST_LR + (1 - _LAST_LR) * 0.5 * (1 + math.cos(math.pi * progress)))
        # linear mechanisms start where the search left them; nonlinear ones have everything to learn
        of_mechanisms = self.causal_lr * (self.on_cells or progress >= _FROZEN)
        for group, lr in zip(optimizer.param_groups, (of_network, of_network, of_mechanisms), strict=True):
            group["lr"] = lr

    def on_train_epoch_start(self) -> None:
        """Begin the sums of an epoch."""
        super().on_train_epoch_start()
        if self.on_cells:
            self.module.training_set.start_epoch()

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Compute the probabilities of targets anew where they are held fixed; let all processes have the same parameters."""
        super().on_train_epoch_end()
        if self.on_cells:
            self.module.training_set.end_epoch(self.module)
        elif torch.distributed.is_available() and torch.distributed.is_initialized():
            # every process steps on the same statistics, but with dropout of its own
            for parameter in self.module.parameters():
                torch.distributed.broadcast(parameter.data, 0)
