"""The networks of VCI, its objective, and its counterfactuals."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.model.base._expression import ExpressionModule
from scvi_causal.model.vci._blocks import CovariateCode, TreatmentCode, mlp
from scvi_causal.model.vci._options import IN_BATCH, RECOMMENDED, VCIOptions
from scvi_causal.model.vci._outcome import Outcome, counterfactual_expression, log_likelihood, predict
from scvi_causal.model.vci._populations import discriminator_loss, distribution_loss
from scvi_causal.nn import kl_normal, kl_standard_normal, published_divergence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_causal.model.base import CounterfactualOutput
    from scvi_causal.model.vci._treatments import TreatmentTable

_LOWEST_SCALE = 1e-3
_VALIDATION_SEED = 0
_FIRST_RAW_SCALE = -2.0


class VCIModule(ExpressionModule):
    r"""Encoder :math:`q(z \mid y, t, x)`, decoder :math:`p(y \mid z, t)`, and the bound on the likelihood of a counterfactual.

    A subclass changes the encoder by :meth:`_build_encoder` and :meth:`_posterior`, the decoder by :meth:`_build_decoder`,
    :meth:`_decoder_hidden` and :meth:`_outcome_head`. What is the same for all cells of a step belongs into :meth:`_per_step`,
    which is called once per step, and whose result :meth:`encode` and :meth:`decode` hand on.

    Parameters
    ----------
    n_genes, n_batch, n_categories, n_continuous
        Sizes of the data: genes, batches, categories of each categorical covariate, continuous covariates.
    n_tokens, features
        Size of the vocabulary and features of its tokens, see :class:`TreatmentCode`.
    gene_likelihood
        ``"nb"`` for counts or ``"normal"``.
    log_normalize
        Whether the data are counts, so that networks see log1p of counts per 10,000.
    options
        All else.
    """

    def __init__(
        self,
        n_genes: int,
        n_tokens: int,
        features: Tensor | None = None,
        n_batch: int = 1,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
        *,
        gene_likelihood: Literal["nb", "normal"] = "nb",
        log_normalize: bool = True,
        options: VCIOptions = RECOMMENDED,
    ):
        super().__init__()
        self.n_genes, self.options = n_genes, options
        self.gene_likelihood, self.log_normalize = gene_likelihood, log_normalize
        self.scale = "counts" if gene_likelihood == "nb" else "log1p" if log_normalize else "continuous"
        self.treatment_code = TreatmentCode(n_tokens, features, control_column=options.treatments == "published")
        categories = n_categories if options.encode_covariates else ()
        self.covariate_code = CovariateCode(n_batch, categories, n_continuous, options.n_covariate)
        self.outcome_embedding = nn.Sequential(nn.Linear(n_genes, options.n_outcome), nn.ReLU())
        self.n_parameters = 2 if options.cell_dispersion else 1
        self.dispersion = None if options.cell_dispersion else nn.Parameter(torch.zeros(n_genes))
        self._build_encoder(options.n_outcome + self.treatment_code.n_code + self.covariate_code.n_code)
        self._build_decoder(options.n_latent + self.treatment_code.n_code)
        self.discriminator = None
        if options.distribution_loss == "discriminator":
            covariates = CovariateCode(n_batch, n_categories, n_continuous, options.n_covariate)
            n_input = n_genes + self.treatment_code.n_code + covariates.n_code
            body = mlp([n_input, 256, 64, 1], "none")
            self.discriminator = nn.ModuleDict({"covariates": covariates, "body": body})
        self.frozen_encoder = None
        if options.second_encoder == "frozen":
            self.frozen_encoder = self._copy_encoder()
        self.table: TreatmentTable | None = None

    # ------------------------------------------------------------------ what a subclass may change

    def _build_encoder(self, n_input: int) -> None:
        """Make ``self.encoder``, from [outcome; treatment; covariates] to what :meth:`_posterior` takes."""
        o = self.options
        sizes = [n_input] + [o.n_hidden] * o.n_layers
        head = nn.Linear(o.n_hidden, 2 * o.n_latent)
        if not o.relu_heads:  # little noise at the start, so that there is something to decode
            nn.init.constant_(head.bias[o.n_latent :], _FIRST_RAW_SCALE)
        body = mlp(sizes, o.normalization, o.dropout_rate, activate_last=True)
        self.encoder = nn.ModuleDict({"body": body, "head": head})

    def _posterior(self, encoder: nn.Module, hidden_input: Tensor, step: dict) -> tuple[Tensor, Tensor]:
        """Mean and raw scale of z, (cells, n_latent) each, by an encoder (the live one or its frozen copy)."""
        mean, raw = encoder["head"](encoder["body"](hidden_input)).chunk(2, dim=1)
        return mean, raw

    def _build_decoder(self, n_input: int) -> None:
        """Make the layers of the decoder, from [z; treatment] to the parameters of the outcome."""
        o = self.options
        self.decoder = mlp([n_input] + [o.n_hidden] * o.n_layers, o.normalization, o.dropout_rate, activate_last=True)
        self.decoder_head = nn.Linear(o.n_hidden, self.n_parameters * self.n_genes)

    def _decoder_hidden(self, z: Tensor, treatment: Tensor) -> Tensor:
        """(cells, n_hidden) what :meth:`_outcome_head` takes."""
        return self.decoder(torch.cat([z, treatment], 1))

    def _outcome_head(self, hidden: Tensor, step: dict) -> list[Tensor]:
        """``n_parameters`` raw parameters of the outcome, (cells, genes) each."""
        return list(self.decoder_head(hidden).chunk(self.n_parameters, dim=1))

    def _per_step(self) -> dict:
        """What is the same for all cells, such as the code of a graph: computed once, used by encoder and decoder."""
        return {}

    # ------------------------------------------------------------------ encoder and decoder

    def encode(
        self, expression: Tensor, treatment: Tensor, covariates: Tensor, step: dict, frozen: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (cells, n_latent) each, of z.

        Parameters
        ----------
        expression
            (cells, genes) outcome, as :meth:`log_expression` gives it.
        treatment, covariates
            (cells, ...) codes.
        step
            From :meth:`_per_step`.
        frozen
            Whether the frozen copy encodes.
        """
        hidden_input = torch.cat([self.outcome_embedding(expression), treatment, covariates], 1)
        encoder = self.frozen_encoder if frozen else self.encoder
        mean, raw = self._posterior(encoder, hidden_input, step)
        if self.options.relu_heads:
            mean, raw = F.relu(mean), F.relu(raw)
        return mean, F.softplus(raw) + _LOWEST_SCALE

    def decode(self, z: Tensor, treatment: Tensor, step: dict) -> Outcome:
        """Outcome of cells with latent state z under treatments (codes)."""
        raw = self._outcome_head(self._decoder_hidden(z, treatment), step)
        location = F.softplus(raw[0]) if self.gene_likelihood == "nb" else raw[0]
        dispersion = raw[1] if self.dispersion is None else self.dispersion
        return Outcome(location, F.softplus(dispersion) + _LOWEST_SCALE)

    def _copy_encoder(self) -> nn.Module:
        frozen = copy.deepcopy(self.encoder)
        return frozen.requires_grad_(False)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Give the frozen encoder the parameters of the live one; the plan calls this after each epoch."""
        if self.frozen_encoder is not None:
            for old, new in zip(self.frozen_encoder.parameters(), self.encoder.parameters(), strict=True):
                old.copy_(new)

    # ------------------------------------------------------------------ scvi-tools' grammar

    def _get_inference_input(self, tensors: dict[str, Tensor], **_: object) -> dict:
        library = self.library(tensors)
        return {
            "expression": self.log_expression(tensors[REGISTRY_KEYS.X_KEY], library),
            "treatment": self.treatment_code.of_vocabulary(tensors[CAUSAL_KEYS.PERTURBATION].float()),
            "covariates": self.covariate_code(tensors),
            "step": self._per_step(),
            "x": tensors[REGISTRY_KEYS.X_KEY],
            "library": library,
        }

    def _generator(self, device: torch.device) -> torch.Generator | None:
        """Validation draws the same numbers in every epoch, so that epochs can be compared."""
        return None if self.training else torch.Generator(device).manual_seed(_VALIDATION_SEED)

    @auto_move_data
    def inference(self, expression: Tensor, treatment: Tensor, covariates: Tensor, step: dict, **given: Tensor) -> dict:
        """Factual posterior, and ``n_draws`` draws from it, stacked."""
        mean, scale = self.encode(expression, treatment, covariates, step)
        shape = (self.options.n_draws, *mean.shape)
        noise = torch.randn(shape, generator=self._generator(mean.device), device=mean.device, dtype=mean.dtype)
        return {
            "qz_mean": mean,
            "qz_scale": scale,
            "z": (mean + scale * noise).flatten(0, 1),
            "expression": expression,
            "treatment": treatment,
            "covariates": covariates,
            "step": step,
            **given,
        }

    def _get_generative_input(self, tensors: dict[str, Tensor], inference_outputs: dict) -> dict:
        if self.table is None:
            raise ValueError("The losses of VCI need its treatment table, which model.train() makes.")
        cells = tensors[CAUSAL_KEYS.INDICES].reshape(-1).long()
        stratum, own = self.table.stratum_of_cell[cells], self.table.treatment_of_cell[cells]
        generator = self._generator(cells.device)
        if self.options.distribution_loss in IN_BATCH:
            drawn = self.table.draw_from_batch(stratum, own, self.options.cells_per_target, generator)
        else:
            drawn = self.table.draw(stratum, self.options.cells_per_target, generator)
        keys = (
            REGISTRY_KEYS.X_KEY,
            REGISTRY_KEYS.BATCH_KEY,
            REGISTRY_KEYS.CAT_COVS_KEY,
            REGISTRY_KEYS.CONT_COVS_KEY,
        )
        return {
            **inference_outputs,
            "contexts": {key: tensors[key] for key in keys if key in tensors},
            "target": self.treatment_code.of_vocabulary(self.table.dosage[drawn]),
            "asked": stratum * self.table.n_treatments + drawn,
            "received": torch.where(own >= 0, stratum * self.table.n_treatments + own, -1),
        }

    @auto_move_data
    def generative(
        self,
        z: Tensor,
        expression: Tensor,
        treatment: Tensor,
        target: Tensor,
        covariates: Tensor,
        step: dict,
        asked: Tensor,
        received: Tensor,
        x: Tensor,
        library: Tensor,
        contexts: dict[str, Tensor],
        **_: object,
    ) -> dict:
        """Outcome under the own treatment and under the target, and the posterior that the latter leads to."""
        n_draws, n_cells = len(z) // len(treatment), len(treatment)
        factual = self.decode(z, treatment.repeat(n_draws, 1), step)
        counterfactual = self.decode(z[:n_cells], target, step)
        outcome = counterfactual_expression(
            self, x, expression, library, factual.first(n_cells), counterfactual, self._generator(z.device)
        )
        frozen = self.frozen_encoder is not None
        mean, scale = self.encode(outcome, target, covariates, step, frozen=frozen)
        return {
            "factual": factual,
            "counterfactual": counterfactual,
            "outcome": outcome,
            "counterfactual_mean": mean,
            "counterfactual_scale": scale,
            "expression": expression,
            "contexts": contexts,
            "treatment": treatment,
            "target": target,
            "asked": asked,
            "received": received,
        }

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict,
        generative_outputs: dict,
        reconstruction_weight: float = 1.0,
        distribution_weight: float = 1.0,
        divergence_weight: float = 0.1,
        prior_weight: float = 0.0,
    ) -> LossOutput:
        """The negative bound: reconstruction, distribution of counterfactuals, divergence of the two posteriors.

        Parameters
        ----------
        reconstruction_weight, distribution_weight, divergence_weight
            The three omegas of the paper. The first two terms are means over genes, the third a sum over latent dimensions.
        prior_weight
            Of the divergence of the posterior from N(0, I), summed over latent dimensions, which the published bound does not have.
        """
        x, library = tensors[REGISTRY_KEYS.X_KEY], self.library(tensors)
        n_draws, expression = self.options.n_draws, inference_outputs["expression"]
        factual = generative_outputs["factual"]
        repeated = (values.repeat(n_draws, 1) for values in (x, expression))
        reconstruction = -log_likelihood(self, *repeated, factual, library.repeat(n_draws, 1))
        reconstruction = reconstruction.view(n_draws, -1).mean(0)
        distribution = distribution_loss(self, generative_outputs)
        divergence = published_divergence if self.options.divergence == "published" else kl_normal
        posterior = inference_outputs["qz_mean"], inference_outputs["qz_scale"]
        other = generative_outputs["counterfactual_mean"], generative_outputs["counterfactual_scale"]
        kl = divergence(*posterior, *other).sum(1)
        loss = (
            reconstruction_weight * reconstruction.mean()
            + distribution_weight * distribution
            + divergence_weight * kl.mean()
        )
        if prior_weight:
            mean, scale = posterior
            loss = loss + prior_weight * kl_standard_normal(mean, scale.square()).sum(1).mean()
        return LossOutput(
            loss=loss,
            reconstruction_loss=reconstruction,
            kl_local=kl,
            extra_metrics={"distribution_loss": distribution},
        )

    def discriminator_loss(self, generative_outputs: dict) -> Tensor:
        """Loss of the discriminator alone; what it is fed is detached from the networks that made it."""
        return discriminator_loss(self, generative_outputs)

    # ------------------------------------------------------------------ counterfactuals

    @auto_move_data
    def latent(
        self, tensors: dict[str, Tensor], *, give_mean: bool = True, generator: torch.Generator | None = None
    ) -> Tensor:
        """(cells, n_latent) state of cells, given what they received."""
        inputs = self._get_inference_input(tensors)
        mean, scale = self.encode(inputs["expression"], inputs["treatment"], inputs["covariates"], inputs["step"])
        return mean if give_mean else mean + scale * _normal_like(mean, generator)

    def inference_step(self) -> dict:
        """What :meth:`_per_step` gives, for predictions; a subclass may keep it between batches."""
        return self._per_step()

    @auto_move_data
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
        """Abduct z (and the noise) of cells from what they are and received, then decode under the target."""
        x, library, step = tensors[REGISTRY_KEYS.X_KEY], self.library(tensors), self.inference_step()
        expression, covariates = self.log_expression(x, library), self.covariate_code(tensors)
        own = self.treatment_code.of_vocabulary(tensors[CAUSAL_KEYS.PERTURBATION].float())
        target_tokens = self.treatment_code.tokens(token_inputs["index"], token_inputs.get("features"))
        target = self.treatment_code(dosage.float(), target_tokens)
        mean, scale = self.encode(expression, own, covariates, step)
        z = mean + scale * _normal_like(mean, generator) if sample_latent else mean
        before = self.decode(z, own, step) if self.options.keep_noise else None
        return predict(self, x, expression, library, before, self.decode(z, target, step), z)

    def treatment_vectors(self, dosage: Tensor, token_inputs: dict[str, Tensor]) -> Tensor:
        """(n, d) what the first layer of the decoder makes of treatments, given as dosages over tokens."""
        tokens = self.treatment_code.tokens(token_inputs["index"], token_inputs.get("features"))
        code = self.treatment_code(dosage, tokens)
        return code @ self.decoder[0].weight[:, self.options.n_latent :].T


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
