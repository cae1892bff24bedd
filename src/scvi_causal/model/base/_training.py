"""Training: the signature of scvi-tools, plus ``split_key``."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from lightning.pytorch.callbacks import Callback
from scvi.train import TrainRunner, merge_kwargs

from scvi_causal._compat import get_max_epochs_heuristic, use_distributed_sampler
from scvi_causal._docs import docs
from scvi_causal.dataloaders import CausalDataSplitter
from scvi_causal.train import CausalTrainingPlan

if TYPE_CHECKING:
    import lightning.pytorch as pl

logger = logging.getLogger(__name__)


class KeepBest(Callback):
    """Keep the parameters of the best epoch in memory and put them back when training ends.

    scvi-tools' ``SaveCheckpoint`` does the same through files; this one writes none.

    Parameters
    ----------
    monitor
        Logged metric, e.g. ``"validation_loss"``.
    mode
        ``"min"`` or ``"max"``.
    """

    def __init__(self, monitor: str = "validation_loss", mode: str = "min"):
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r} is neither 'min' nor 'max'.")
        self.monitor, self.mode = monitor, mode
        self.best: float | None = None
        self.epoch: int | None = None
        self._state: dict | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take a copy if this epoch is the best so far."""
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            raise ValueError(
                f"{self.monitor!r} is not logged, so the best epoch cannot be told by it. "
                f"Logged are {sorted(trainer.callback_metrics)}."
            )
        value = float(trainer.callback_metrics[self.monitor])
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better and np.isfinite(value):
            self.best, self.epoch = value, trainer.current_epoch
            self._state = copy.deepcopy(pl_module.module.state_dict())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the best parameters back."""
        if self._state is not None:
            pl_module.module.load_state_dict(self._state)
            self._state = None
            logger.info("Parameters of epoch %s put back: %s = %.5g.", self.epoch, self.monitor, self.best)


class TrainingMixin:
    """``train`` on the data module and the plan of this package.

    Attributes
    ----------
    _datasplitter_defaults
        What a method needs of :class:`~scvi_causal.dataloaders.CausalDataSplitter`, e.g. ``{"pair_controls": True}``.
    _plan_defaults
        What it needs of its training plan.
    _default_batch_size
        Cells per batch.
    """

    _data_splitter_cls = CausalDataSplitter
    _training_plan_cls = CausalTrainingPlan
    _train_runner_cls = TrainRunner
    _datasplitter_defaults: ClassVar[dict[str, Any]] = {}
    _plan_defaults: ClassVar[dict[str, Any]] = {}
    _default_batch_size: ClassVar[int] = 512

    @docs.dedent
    def train(
        self,
        max_epochs: int | None = None,
        split_key: str | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = None,
        early_stopping: bool = False,
        keep_best: bool | None = None,
        datasplitter_kwargs: dict | None = None,
        plan_config: Any = None,
        plan_kwargs: dict | None = None,
        datamodule: pl.LightningDataModule | None = None,
        trainer_config: Any = None,
        **trainer_kwargs,
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Number of passes over the training cells; ``None`` is scvi-tools' heuristic (400 up to 20,000 cells, fewer beyond).
        split_key
            Column of ``adata.obs`` with ``"train"``, ``"valid"`` or ``"test"`` for every cell, see
            :func:`~scvi_causal.data.assign_split`. Without it 90%% of the cells of each condition train, the others validate.
        %(param_accelerator)s
        %(param_devices)s
        train_size, validation_size, shuffle_set_split
            Of the random split; not used with ``split_key``.
        load_sparse_tensor
            Send sparse batches to the device and densify them there.
        batch_size
            Cells per batch.
        early_stopping
            Stop when the monitored metric no longer improves (``early_stopping_monitor``, by default the validation loss).
        keep_best
            Put the parameters of the best epoch back at the end, by the same metric; by default with early stopping.
        datasplitter_kwargs, plan_config, plan_kwargs, datamodule, trainer_config
            As in scvi-tools, passed to :class:`~scvi_causal.dataloaders.CausalDataSplitter`, the training plan and
            :class:`~scvi.train.Trainer`.
        **trainer_kwargs
            Further arguments of :class:`~scvi.train.Trainer`.

        Raises
        ------
        ValueError
            If the split has no training control, or a number stops being finite: the message names the first bad tensor.
        """
        if datamodule is None and self.adata is None:
            raise ValueError("The model has no data to train on: build it with an AnnData, or pass a datamodule.")
        if max_epochs is None:
            max_epochs = self._default_max_epochs(datamodule)
        if datamodule is None:
            distributed = use_distributed_sampler(trainer_kwargs.get("strategy"))
            datamodule = self._data_splitter_cls(
                self.adata_manager,
                **{
                    "train_size": train_size,
                    "validation_size": validation_size,
                    "batch_size": batch_size or self._default_batch_size,
                    "shuffle_set_split": shuffle_set_split,
                    "load_sparse_tensor": load_sparse_tensor,
                    "distributed_sampler": distributed,
                    "split_key": split_key,
                    **self._datasplitter_defaults,
                    **(datasplitter_kwargs or {}),
                },
            )
        self._before_training(getattr(datamodule, "train_idx", None))
        plan_kwargs = merge_kwargs(plan_config, plan_kwargs, name="plan")
        plan = self._training_plan_cls(self.module, **{**self._plan_defaults, **plan_kwargs})
        keep_best = self._keeps_best(datamodule) if keep_best is None else keep_best
        trainer_kwargs = self._trainer_kwargs(trainer_kwargs, trainer_config, early_stopping, keep_best)
        self._train_runner_cls(
            self,
            training_plan=plan,
            data_splitter=datamodule,
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            trainer_config=trainer_config,
            **trainer_kwargs,
        )()
        self.split_key_ = split_key
        if self.adata is not None:
            self._record_training()
        self._after_training()

    def _keeps_best(self, datamodule: pl.LightningDataModule) -> bool | None:
        """Hook for what ``keep_best=None`` means; ``None`` is with early stopping only."""
        return None

    def _before_training(self, train_idx: np.ndarray | None) -> None:
        """Hook for what a method estimates from the training cells before the first step."""

    def _after_training(self) -> None:
        """Hook for what a method derives from what it has learned; :attr:`seen_tokens_` is known by then."""

    def _default_max_epochs(self, datamodule: pl.LightningDataModule | None) -> int:
        n_obs = self.adata.n_obs if datamodule is None else getattr(datamodule, "n_obs", None)
        if n_obs is None:
            raise ValueError("The datamodule does not say how many cells it has (n_obs): pass max_epochs.")
        return get_max_epochs_heuristic(n_obs)

    def _trainer_kwargs(
        self, given: dict[str, Any], config: Any, early_stopping: bool, keep_best: bool | None
    ) -> dict[str, Any]:
        """Arguments of the trainer; what is monitored is the plan's own metric unless the user names another."""
        named = merge_kwargs(config, given, name="trainer")
        default = getattr(self._training_plan_cls, "default_monitor", "validation_loss")
        monitor = named.get("early_stopping_monitor", default)
        kwargs = {**given, "early_stopping": early_stopping, "early_stopping_monitor": monitor}
        if early_stopping if keep_best is None else keep_best:
            best = KeepBest(monitor, named.get("early_stopping_mode", "min"))
            kwargs["callbacks"] = [*(named.get("callbacks") or []), best]
            kwargs["check_val_every_n_epoch"] = named.get("check_val_every_n_epoch") or 1
        return kwargs
