"""The training plan of all models."""

from __future__ import annotations

from inspect import Parameter, signature
from typing import TYPE_CHECKING

import torch
from scvi.train import TrainingPlan

from scvi_causal.data._messages import did_you_mean, listed
from scvi_causal.train._nan_guard import NaNGuard, NonFiniteError, find_non_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lightning.pytorch.callbacks import Callback
    from scvi.module.base import BaseModuleClass

_AUTO_WARMUP = 1 / 3


class CausalTrainingPlan(TrainingPlan):
    """scvi-tools' plan with the defaults of the papers and a guard against numbers that are none.

    Parameters
    ----------
    module
        Module to train.
    lr, eps, weight_decay
        Of Adam. scvi-tools' own defaults are an `eps` of 0.01, which makes Adam behave like plain gradient descent
        wherever gradients are small, and a `weight_decay` of 1e-6.
    n_epochs_kl_warmup
        Number of epochs (int) over which the weight of the KL divergence rises from `min_kl_weight` to
        `max_kl_weight`, or the fraction (float) of the training; 1.0 reaches the maximum in the last epoch. `"auto"` is
        one third, `None` (or 0) no warm-up.
    gradient_clip_val
        Largest norm of the gradients, all together; `None` does not clip. Takes the place of the Trainer's own.
    clip_per_tensor
        Clip the gradient of each parameter tensor to that norm by itself (as published for SCCVAE).
    fused
        Update all parameters in one pass; by default wherever the optimizer has it (CPU and CUDA).
    nan_guard
        Stop with a ``ValueError`` that names the first tensor that is not finite; see
        :class:`~scvi_causal.train.NaNGuard`.
    lr_scheduler_metric
        Metric that `reduce_lr_on_plateau` watches.
    **kwargs
        Passed to :class:`scvi.train.TrainingPlan`; what it does not know goes to the loss of the module.

    Raises
    ------
    ValueError
        If an argument is neither the plan's nor the loss's.
    """

    default_monitor = "validation_loss"

    def __init__(
        self,
        module: BaseModuleClass,
        *,
        lr: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        n_epochs_kl_warmup: int | float | str | None = "auto",
        gradient_clip_val: float | None = None,
        clip_per_tensor: bool = False,
        fused: bool | None = None,
        nan_guard: bool = True,
        lr_scheduler_metric: str = "validation_loss",
        **kwargs,
    ):
        self._check_warmup(n_epochs_kl_warmup)
        if clip_per_tensor and gradient_clip_val is None:
            raise ValueError("`clip_per_tensor=True` needs a `gradient_clip_val`, e.g. 1.0.")
        super().__init__(
            module,
            lr=lr,
            eps=eps,
            weight_decay=weight_decay,
            n_epochs_kl_warmup=None,
            lr_scheduler_metric=lr_scheduler_metric,
            **kwargs,
        )
        self._check_loss_kwargs(module)
        self._warmup = n_epochs_kl_warmup
        self.n_epochs_kl_warmup = n_epochs_kl_warmup if isinstance(n_epochs_kl_warmup, int) else None
        self.gradient_clip_val, self.clip_per_tensor = gradient_clip_val, clip_per_tensor
        self.fused, self.nan_guard = fused, nan_guard
        self.step_outputs: tuple | None = None

    @staticmethod
    def _check_warmup(warmup: int | float | str | None) -> None:
        is_number = isinstance(warmup, int | float) and not isinstance(warmup, bool) and warmup >= 0
        is_fraction = not isinstance(warmup, float) or warmup <= 1
        if warmup not in (None, "auto") and not (is_number and is_fraction):
            raise ValueError(
                "`n_epochs_kl_warmup` has to be a number of epochs (int), a fraction of the training (float, 0 to 1), "
                f"'auto' or None, got {warmup!r}."
            )

    def _check_loss_kwargs(self, module: BaseModuleClass) -> None:
        accepted = signature(module.loss).parameters
        if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in accepted.values()):
            return
        if unknown := [name for name in self.loss_kwargs if name not in accepted]:
            known = {*signature(type(self)).parameters, *signature(TrainingPlan).parameters, *accepted}
            raise ValueError(
                f"Unknown arguments in plan_kwargs: {listed(unknown)}.{did_you_mean(unknown[0], known)} Neither the "
                "training plan nor the loss of the model takes them."
            )

    def configure_callbacks(self) -> list[Callback]:
        """Bring the guard along, unless the trainer has one already."""
        return [NaNGuard()] if self.nan_guard and not self._has_guard() else []

    def _has_guard(self) -> bool:
        return any(isinstance(callback, NaNGuard) for callback in self.trainer.callbacks)

    def on_fit_start(self) -> None:
        """Turn a relative warm-up into epochs, now that their number is known."""
        super().on_fit_start()
        # scvi-tools leaves a trained module in eval mode, and Lightning trains it as it finds it.
        self.module.train()
        fraction = _AUTO_WARMUP if self._warmup == "auto" else self._warmup
        if not isinstance(fraction, float) or "kl_weight" not in self.loss_kwargs:
            return
        max_epochs = self.trainer.max_epochs
        if max_epochs is None or max_epochs < 1:
            raise ValueError(
                f"n_epochs_kl_warmup={self._warmup!r} is relative to the number of epochs, and max_epochs={max_epochs}; "
                "pass a number of epochs."
            )
        self.n_epochs_kl_warmup = round(fraction * (max_epochs - 1))

    def forward(self, *args, **kwargs):
        """Pass through the module; what comes out stays in reach of the guard until the step is over."""
        outputs = super().forward(*args, **kwargs)
        self.step_outputs = outputs if self.training and self.nan_guard else None
        return outputs

    def training_step(self, batch: dict, batch_idx: int):
        """Training step that also explains what a distribution refuses as its parameters."""
        try:
            return super().training_step(batch, batch_idx)
        except ValueError as error:
            # Distributions check their parameters, so a NaN can end a step before there is a loss to look at.
            found = find_non_finite(batch, self.module) if self.nan_guard else None
            if found is None:
                raise
            raise NonFiniteError(
                f"The training step failed in epoch {self.current_epoch}, step {self.global_step}: {found.describe()}"
            ) from error

    def _optimizer_creator_fn(self, optimizer_cls: type[torch.optim.Optimizer]) -> Callable:
        def create(params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
            params = list(params)
            fused = self._can_fuse(params) if self.fused is None else self.fused
            return optimizer_cls(params, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay, fused=fused)

        return create

    def _can_fuse(self, params: list[torch.nn.Parameter]) -> bool:
        # A fused optimizer takes the loss scale of float16 out by itself, after which nothing can be clipped.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) if self._trainer is not None else None
        return scaled is None and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip as this plan says, otherwise as the trainer says."""
        if self.gradient_clip_val is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for clipped in [[p] for p in params] if self.clip_per_tensor else [params]:
            _clip_norm(clipped, self.gradient_clip_val)


def _clip_norm(params: list[torch.nn.Parameter], largest: float) -> None:
    """``torch.nn.utils.clip_grad_norm_``, without its pass over gradients that are short enough."""
    if any(p.device.type != "cpu" for p in params):  # looking at the norm would wait for the device
        torch.nn.utils.clip_grad_norm_(params, largest)
        return
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in params]))
    scale = largest / (norm + 1e-6)
    if scale < 1.0:
        for p in params:
            p.grad.mul_(scale)
