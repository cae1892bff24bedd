"""A plan for modules with a discriminator, which has an optimizer of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scvi_causal.train._plan import CausalTrainingPlan

if TYPE_CHECKING:
    from scvi.module.base import BaseModuleClass


class AdversarialCausalTrainingPlan(CausalTrainingPlan):
    """Trains a module, and beside it its ``discriminator`` where it has one.

    The module offers ``discriminator`` (a network, or ``None``), ``discriminator_loss(generative_outputs)``, and a loss that
    already contains what is to fool the discriminator. Each step updates first the model, whose gradients do not reach the
    discriminator, then the discriminator on the same, detached, predictions.

    Parameters
    ----------
    module
        Module to train.
    discriminator_lr
        Learning rate of the discriminator.
    discriminator_steps, discriminator_cycle
        The discriminator is updated in the last ``discriminator_steps`` of every ``discriminator_cycle`` steps; as published 2
        of 3.
    **kwargs
        Passed to :class:`CausalTrainingPlan`.

    Notes
    -----
    Without a discriminator this is :class:`CausalTrainingPlan`. With one, gradients are not accumulated over batches.
    """

    def __init__(
        self,
        module: BaseModuleClass,
        *,
        discriminator_lr: float = 3e-4,
        discriminator_steps: int = 2,
        discriminator_cycle: int = 3,
        **kwargs,
    ):
        super().__init__(module, **kwargs)
        if not 0 < discriminator_steps <= discriminator_cycle:
            raise ValueError(
                f"discriminator_steps={discriminator_steps} of discriminator_cycle={discriminator_cycle}: pass at least 1, and "
                "at most as many as the cycle has."
            )
        self.discriminator_lr = discriminator_lr
        self.discriminator_steps, self.discriminator_cycle = discriminator_steps, discriminator_cycle
        self.is_adversarial = getattr(module, "discriminator", None) is not None
        self.automatic_optimization = not self.is_adversarial

    def _generator_parameters(self) -> list[torch.nn.Parameter]:
        excluded = {id(p) for p in self.module.discriminator.parameters()} if self.is_adversarial else set()
        return [p for p in self.module.parameters() if p.requires_grad and id(p) not in excluded]

    def configure_optimizers(self):
        """One optimizer, or two: of the model, of the discriminator."""
        if not self.is_adversarial:
            return super().configure_optimizers()
        of_model = self.get_optimizer_creator()(self._generator_parameters())
        of_discriminator = torch.optim.Adam(self.module.discriminator.parameters(), lr=self.discriminator_lr)
        return [of_model, of_discriminator]

    def training_step(self, batch: dict, batch_idx: int):
        """Step of the model, then of the discriminator."""
        loss = super().training_step(batch, batch_idx)
        if not self.is_adversarial:
            return loss
        of_model, of_discriminator = self.optimizers()
        of_model.zero_grad()
        self.manual_backward(loss)
        self.configure_gradient_clipping(of_model)
        of_model.step()
        of_discriminator.zero_grad()  # what the model's loss left in it
        place = batch_idx % self.discriminator_cycle
        if place >= self.discriminator_cycle - self.discriminator_steps:
            judged = self.module.discriminator_loss(self._generative_outputs)
            self.log("discriminator_loss", judged, on_step=False, on_epoch=True, batch_size=1)
            self.manual_backward(judged)
            of_discriminator.step()
        self._generative_outputs = None
        return loss

    def forward(self, *args, **kwargs):
        """Pass through the module; the discriminator is shown what came out."""
        outputs = super().forward(*args, **kwargs)
        self._generative_outputs = outputs[1] if self.is_adversarial and self.training else None
        return outputs

    def on_train_epoch_end(self) -> None:
        """Tell modules that keep a copy of themselves that an epoch is over."""
        super().on_train_epoch_end()
        end_epoch = getattr(self.module, "end_epoch", None)
        if end_epoch is not None:
            end_epoch()
