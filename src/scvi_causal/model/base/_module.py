"""What a torch module has to offer so that a model gets the whole public API."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scvi.module.base import BaseModuleClass

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributions import Distribution

Scale = Literal["counts", "log1p", "continuous"]
"""Scale on which a module predicts: expected counts on the cell's own library, log1p of counts per 10,000, or whatever
scale continuous data came on."""


@dataclass
class CounterfactualOutput:
    """What :meth:`CausalModule.counterfactual` returns for a batch of source cells.

    Parameters
    ----------
    mean
        (cells, genes) expected expression on the scale of the module.
    distribution
        Predictive distribution of cells on the same scale. ``None``: ``mean`` is itself one draw per source cell, as when
        real cells are shifted.
    latent
        (cells, latent) representation of the cells under the target, if there is one.
    """

    mean: Tensor
    distribution: Distribution | None = None
    latent: Tensor | None = None


class CausalModule(BaseModuleClass):
    """Base of all modules: a scvi-tools module that can also answer a counterfactual question.

    Attributes
    ----------
    scale
        Scale of what :meth:`counterfactual` returns; may depend on the likelihood of the instance.
    """

    scale: Scale = "counts"

    @abstractmethod
    def counterfactual(
        self,
        tensors: dict[str, Tensor],
        dosage: Tensor,
        token_inputs: dict[str, Tensor],
        *,
        sample_latent: bool = False,
        sample_parameters: bool = False,
        generator: torch.Generator | None = None,
    ) -> CounterfactualOutput:
        """Predict each cell of a batch under a target.

        Parameters
        ----------
        tensors
            Batch of *source* cells by registry key (``X`` as registered). A source of a model that cannot abduct is always
            a control cell.
        dosage
            (cells, T) dosage of each of the T target tokens of this call; a row of zeros is control. T may be 0.
        token_inputs
            What the model knows about these T tokens, see :meth:`CausalModel._get_token_inputs`; first dimension T.
        sample_latent
            Whether to draw the latent variables instead of using their posterior means.
        sample_parameters
            Whether to draw the parameters that carry an uncertainty, such as effects, once for all cells. A single population
            is predicted with their estimates; several draws show how far these could be off.
        generator
            Source of all randomness. Noise per cell is drawn from it in order; noise that belongs to a *draw of the
            parameters*, and so is shared by all cells, comes from a fresh generator seeded with
            ``generator.initial_seed()``, which is the same for all batches of one draw.

        Returns
        -------
        The prediction; same number and order of cells as the batch.
        """

    def latent(
        self, tensors: dict[str, Tensor], *, give_mean: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """(cells, latent) representation of observed cells; modules without a latent space leave this as it is."""
        raise NotImplementedError(f"{type(self).__name__} has no latent space.")
