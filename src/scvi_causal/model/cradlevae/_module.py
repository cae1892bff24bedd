"""The torch module of CRADLE-VAE: SAMS-VAE in which failed cells carry an artifact beside their perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scvi import REGISTRY_KEYS
from scvi.module.base import auto_move_data
from torch import Tensor, nn

from scvi_causal._constants import CAUSAL_KEYS, SOURCE_PREFIX
from scvi_causal.model.cradlevae._artifacts import Artifacts, of_quality
from scvi_causal.model.cradlevae._losses import artifact_loss
from scvi_causal.model.samsvae._module import SAMSVAEModule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scvi_causal.model.cradlevae._options import ArtifactOptions


class CRADLEVAEModule(SAMSVAEModule):
    r"""Generative model of a cell with dosages d and quality class q (0 passes).

    .. math::
        z &\sim N(0, I), \quad u = z + \textstyle\sum_t d_t\, M_t \odot E_t + A_q, \quad A_0 = 0 \\
        \rho &= \mathrm{softmax}(f(u, \text{covariates})), \quad x_g \sim NB(\ell \rho_g, \theta_g)

    or, as published, with :math:`u = [z;\, \sum_t d_t M_t \odot E_t;\, A_q]`. Only the branch of the decoder that the quality of a cell
    selects is evaluated: the other one enters no likelihood.

    Parameters
    ----------
    n_genes, n_tokens, n_latent, n_hidden, n_layers, n_categories, n_continuous, has_size_factor, n_features
        As for :class:`SAMSVAEModule`.
    n_kinds
        Number of kinds of failure.
    options
        What differs between presets.
    """

    def __init__(
        self,
        n_genes: int,
        n_tokens: int,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        n_categories: Sequence[int] = (1,),
        n_continuous: int = 0,
        has_size_factor: bool = False,
        n_features: int = 0,
        n_kinds: int = 1,
        *,
        options: ArtifactOptions,
    ):
        super().__init__(
            n_genes,
            n_tokens,
            n_latent,
            n_hidden,
            n_layers,
            (*n_categories, n_kinds + 1) if options.quality_covariate else n_categories,
            n_continuous,
            has_size_factor,
            n_features,
            options=options,
        )
        self.n_kinds = n_kinds
        self.artifacts = Artifacts(
            n_kinds,
            n_latent,
            prior_scale=options.embedding_prior_scale,
            network=options.guide == "correlated" and n_kinds > 0,
            analytic_kl=options.analytic_kl,
            n_hidden=options.n_guide_hidden,
            n_layers=options.n_guide_layers,
        )
        # filled before training; the class that passes comes first
        self.register_buffer("cells_per_quality", torch.zeros(n_kinds + 1))
        self.register_buffer("validation_cells_per_quality", torch.zeros(n_kinds + 1))
        # of the artifact loss, filled during training: see ReferencePools
        self.register_buffer("reference_expression", torch.zeros(0, n_genes), persistent=False)
        self.register_buffer("reference_of_cell", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("other_quality_of_cell", torch.zeros(0, dtype=torch.int64), persistent=False)

    @property
    def n_condition(self) -> int:
        """Width of what stands for perturbations and artifact."""
        return super().n_condition + (self.n_latent if self.options.artifact == "concat" else 0)

    @property
    def concatenates(self) -> bool:
        """Whether perturbations and artifact are inputs of the decoder beside the basal state."""
        return self.options.artifact == "concat"

    def global_parameters(self) -> list[nn.Parameter]:
        """Parameters of the variables that all cells share."""
        return [*super().global_parameters(), *self.artifacts.parameters()]

    # ------------------------------------------------------------------ quality and artifacts

    def quality(self, tensors: dict[str, Tensor], of_source: bool = False) -> Tensor:
        """(cells,) quality classes; ``of_source``: those that the cells have, where a prediction sets others."""
        key = CAUSAL_KEYS.QUALITY
        given = tensors.get(SOURCE_PREFIX + key, tensors[key]) if of_source else tensors[key]
        return given.long().reshape(-1)

    def category_codes(self, read: Callable[[str], Tensor], tensors: dict[str, Tensor]) -> list[Tensor]:
        """(cells,) codes of batch, categorical covariates, and of quality where it is one."""
        codes = super().category_codes(read, tensors)
        return [*codes, read(CAUSAL_KEYS.QUALITY).long().reshape(-1)] if self.options.quality_covariate else codes

    @property
    def first_quality_column(self) -> int:
        """Where the one-hot code of quality begins among the covariates."""
        return sum(n for n in self.n_categories[:-1] if n > 1)

    def at_quality(self, covariates: Tensor, quality: Tensor) -> Tensor:
        """Covariates (cells, n_covariates) of the same cells at other quality classes (cells,)."""
        if not self.options.quality_covariate or not self.n_kinds:
            return covariates
        start, end = self.first_quality_column, self.first_quality_column + self.n_kinds + 1
        code = F.one_hot(quality, self.n_kinds + 1).to(covariates)
        return torch.cat([covariates[:, :start], code, covariates[:, end:]], 1)

    def join(self, shift: Tensor, artifact: Tensor) -> Tensor:
        """(..., n_condition) what :meth:`encode` and :meth:`decode` take, from (..., n) and (..., n_latent)."""
        if not self.concatenates:
            return shift + artifact
        shape = torch.broadcast_shapes(shift.shape[:-1], artifact.shape[:-1])
        return torch.cat([shift.expand(*shape, -1), artifact.expand(*shape, -1)], -1)

    def artifact_values(self, seed: int | None = None) -> Tensor:
        """(n_kinds, n_latent) artifacts, expected or drawn; nothing for kinds of failure without training cells."""
        seen = self.cells_per_quality[1:] > 0
        return torch.where(seen[:, None], self.artifacts.values(seed), 0.0)

    def complete(
        self, condition: Tensor, tensors: dict[str, Tensor], seed: int | None = None, of_source: bool = False
    ) -> Tensor:
        """Perturbations and artifact of cells, from what their perturbations do."""
        return self.join(condition, of_quality(self.artifact_values(seed), self.quality(tensors, of_source)))

    def _inverse_quality_counts(self) -> Tensor:
        """(n_kinds,) one over the number of cells of the split with each kind of failure; 0 where there are none."""
        counts = self.cells_per_quality
        if not self.training and bool(self.validation_cells_per_quality.any()):
            counts = self.validation_cells_per_quality
        return torch.where(counts > 0, 1.0 / counts.clamp_min(1.0), 0.0)[1:]

    # ------------------------------------------------------------------ the model

    def _get_inference_input(self, tensors: dict[str, Tensor], **kwargs: object) -> dict[str, Tensor]:
        return {**super()._get_inference_input(tensors, **kwargs), "quality": self.quality(tensors)}

    @auto_move_data
    def inference(
        self, expression: Tensor, dosage: Tensor, covariates: Tensor, quality: Tensor, n_samples: int | None = None
    ) -> dict[str, Tensor]:
        """Draw global variables and the basal state; beside the outputs of SAMS-VAE ``shift`` and ``artifacts`` of all kinds."""
        n_particles = n_samples or self.options.n_particles
        shift, kl = self.draw_condition(dosage, n_particles)
        artifacts, kl_artifact = self.artifacts.draw(n_particles, 1 if self.options.shared_draws else len(dosage))
        share = of_quality((self._inverse_quality_counts() * kl_artifact)[..., None], quality)
        condition = self.join(shift, of_quality(artifacts, quality))
        basal = self.draw_basal(expression, condition, covariates)
        return {**basal, "kl_global": kl + share.squeeze(-1), "shift": shift, "artifacts": artifacts}

    def cell_weight(self, tensors: dict[str, Tensor]) -> Tensor | None:
        """(cells,) weights of the likelihoods: the mean over the training cells is 1, unless they are as published."""
        if self.options.quality_weights == "none":
            return None
        quality = self.quality(tensors)
        if self.options.quality_weights == "published":
            share = (quality > 0).to(self.log_dispersion).mean()
            return torch.where(quality > 0, 1.0 - share, share)
        counts = self.cells_per_quality
        n_classes = (counts > 0).sum().clamp_min(1)
        weight = torch.where(counts > 0, counts.sum() / (n_classes * counts.clamp_min(1.0)), 0.0)
        return weight[quality]

    def extra_terms(self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The artifact loss, where there is one."""
        options = self.options
        if options.artifact_loss == "none" or not options.artifact_loss_weight or not len(self.reference_of_cell):
            return {}
        cell = tensors[CAUSAL_KEYS.INDICES].long().reshape(-1)
        reference = self.reference_of_cell[cell]
        has = (reference >= 0).nonzero().squeeze(1)
        if not len(has):
            return {}
        x = tensors[REGISTRY_KEYS.X_KEY]
        value = artifact_loss(
            self,
            self.standardize(self.expression(x, self.library(tensors)))[has],
            self.reference_expression[reference[has]],
            tensors[CAUSAL_KEYS.PERTURBATION][has],
            self.covariates(tensors)[has],
            self.quality(tensors)[has],
            self.other_quality_of_cell[cell[has]],
            {key: v[:, has] if v.shape[1] > 1 else v for key, v in inference_outputs.items() if key in _USED},
        )
        return {"artifact_loss": options.artifact_loss_weight * value}

    # ------------------------------------------------------------------ predictions

    def draw_all(self, n_particles: int) -> tuple[Tensor | None, Tensor]:
        """Draws of the shifts of all tokens, see :meth:`SAMSVAEModule.draw_all`, and (n_particles, n_kinds, n_latent) of artifacts."""
        artifacts = self.artifacts.draw(n_particles)[0].squeeze(1)
        return super().draw_all(n_particles), torch.where(self.cells_per_quality[1:, None] > 0, artifacts, 0.0)

    def condition_from(
        self, dosage: Tensor, drawn: tuple[Tensor | None, Tensor], tensors: dict[str, Tensor] | None = None
    ) -> Tensor:
        """As for SAMS-VAE; without ``tensors``, which tell their quality, cells pass."""
        shifts, artifacts = drawn
        shift = super().condition_from(dosage, shifts)
        if tensors is None:
            return self.join(shift, shift.new_zeros(1, self.n_latent))
        if shift.ndim == 3:
            artifacts = artifacts[:, None]
        return self.join(shift, of_quality(artifacts, self.quality(tensors)))


_USED = ("shift", "artifacts", "qz_mean", "qz_variance")
