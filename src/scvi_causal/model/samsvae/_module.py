"""The torch module of SAMS-VAE: a count VAE of all cells, whose latent variables are moved by sparse additive shifts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from scvi import REGISTRY_KEYS
from scvi.module.base import LossOutput, auto_move_data
from torch import Tensor, nn

from scvi_causal._constants import CAUSAL_KEYS, NORMALIZED_TOTAL, SOURCE_PREFIX
from scvi_causal.model.samsvae._mechanisms import Mechanisms
from scvi_causal.model.samsvae._network import CountDecoder, GaussianEncoder
from scvi_causal.model.samsvae._predictions import PredictionModule
from scvi_causal.model.samsvae._remainder import Remainder
from scvi_causal.nn import kl_standard_normal, nb_log_likelihood
from scvi_causal.nn._masks import log_normal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from scvi_causal.model.samsvae._options import ModuleOptions

_LOWEST_MEAN = 1e-4  # counts: added to every mean, as published
_LARGEST_INPUT = 10.0  # standard deviations


class SAMSVAEModule(PredictionModule):
    r"""Generative model of a cell with dosages d.

    .. math::
        z &\sim N(0, I), \quad u = z + \textstyle\sum_t d_t\, M_t \odot E_t \\
        \rho &= \mathrm{softmax}(f(u, \text{covariates})), \quad x_g \sim NB(\ell \rho_g, \theta_g)

    Parameters
    ----------
    n_genes, n_tokens
        Sizes of the data.
    n_latent, n_hidden, n_layers
        Of encoder and decoder.
    n_categories
        Number of categories of the batch and of each categorical covariate.
    n_continuous
        Number of continuous covariates.
    has_size_factor
        Whether the library is a size factor, so that the genes of the panel share it with others.
    n_features
        Number of features of a token, from which shifts of unseen ones are predicted.
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
        *,
        options: ModuleOptions,
    ):
        super().__init__()
        self.n_genes, self.n_tokens, self.n_latent, self.options = n_genes, n_tokens, n_latent, options
        self.n_categories, self.n_continuous = tuple(n_categories), n_continuous
        self.n_covariates = sum(n for n in n_categories if n > 1) + n_continuous
        self.mechanisms = None
        if options.mechanism != "one-hot":
            self.mechanisms = self.make_mechanisms()
        n_seen = self.n_condition if options.posterior == "network" else 0
        n_input, n_encoder_hidden = n_genes + n_seen + self.n_covariates, options.n_encoder_hidden or n_hidden
        self.encoder = GaussianEncoder(n_input, n_latent, n_encoder_hidden, n_layers)
        self.decoder = self.make_decoder(n_hidden, n_layers, has_size_factor)
        self.log_dispersion = nn.Parameter(torch.zeros(n_genes))
        # filled before training
        self.register_buffer("input_mean", torch.zeros(n_genes))
        self.register_buffer("input_scale", torch.ones(n_genes))
        self.register_buffer("covariate_mean", torch.zeros(n_continuous))
        self.register_buffer("covariate_scale", torch.ones(n_continuous))
        self.register_buffer("cells_per_token", torch.zeros(n_tokens))
        self.register_buffer("validation_cells_per_token", torch.zeros(n_tokens))
        # filled after training
        n_shift = self.n_shift if self.mechanisms is not None else 0
        self.register_buffer("feature_center", torch.zeros(n_features))
        self.register_buffer("feature_map", torch.zeros(n_features, n_shift))
        self.register_buffer("mean_shift", torch.zeros(n_shift))
        self.register_buffer("unseen_shift", torch.zeros(n_tokens, n_shift))
        self.remainder = Remainder(n_tokens, n_genes) if options.remainder else None

    def make_mechanisms(self) -> Mechanisms:
        """Masks and embeddings."""
        options = self.options
        return Mechanisms(
            self.n_tokens, self.n_shift, masked=options.mechanism == "sparse", **options.mechanism_arguments()
        )

    def make_decoder(self, n_hidden: int, n_layers: int, has_size_factor: bool) -> CountDecoder:
        """The decoder of what :meth:`combine` gives."""
        options = self.options
        return CountDecoder(
            self.n_latent + (self.n_condition if self.concatenates else 0),
            self.n_genes,
            n_hidden,
            n_layers + options.extra_decoder_layers,
            self.n_covariates,
            linear=options.linear_decoder,
            rest=has_size_factor and options.rest_of_library,
        )

    @property
    def n_shift(self) -> int:
        """Width of the shifts of tokens."""
        return self.n_latent

    @property
    def n_condition(self) -> int:
        """Width of what stands for the condition of a cell."""
        return self.n_tokens if self.mechanisms is None else self.n_shift

    @property
    def concatenates(self) -> bool:
        """Whether the condition is an input of the decoder beside the basal state, rather than added to it."""
        return self.mechanisms is None

    def global_parameters(self) -> list[nn.Parameter]:
        """Parameters of the variables that all cells share."""
        return [] if self.mechanisms is None else list(self.mechanisms.parameters())

    # ------------------------------------------------------------------ what is read from a batch

    def library(self, tensors: dict[str, Tensor]) -> Tensor:
        """(cells, 1) library: the size factor where one is registered, else the total counts."""
        size = tensors.get(REGISTRY_KEYS.SIZE_FACTOR_KEY)
        if size is not None:
            return size.reshape(-1, 1).float()
        return tensors[REGISTRY_KEYS.X_KEY].sum(1, keepdim=True).clamp_min(1.0)

    def expression(self, x: Tensor, library: Tensor) -> Tensor:
        """(cells, genes) log expression: of counts per 10,000, or of raw counts as published."""
        return torch.log1p(x * (NORMALIZED_TOTAL / library)) if self.options.normalize_library else torch.log1p(x)

    def standardize(self, expression: Tensor) -> Tensor:
        """(cells, genes) log expression as the encoder sees it."""
        scaled = (expression - self.input_mean) / self.input_scale
        return scaled.clamp(-_LARGEST_INPUT, _LARGEST_INPUT) if self.options.normalize_library else scaled

    def covariates(self, tensors: dict[str, Tensor], of_source: bool = False) -> Tensor:
        """(cells, n_covariates) one-hot codes of batch and categorical covariates, and standardised continuous ones.

        ``of_source``: those that the cells have, where a prediction sets others.
        """

        def read(key: str) -> Tensor:
            return tensors.get(SOURCE_PREFIX + key, tensors[key]) if of_source else tensors[key]

        codes = self.category_codes(read, tensors)
        parts = [F.one_hot(code, n).float() for code, n in zip(codes, self.n_categories, strict=True) if n > 1]
        if self.n_continuous:
            parts.append((read(REGISTRY_KEYS.CONT_COVS_KEY).float() - self.covariate_mean) / self.covariate_scale)
        return torch.cat(parts, 1) if parts else codes[0].new_zeros(len(codes[0]), 0, dtype=torch.float32)

    def category_codes(self, read: Callable[[str], Tensor], tensors: dict[str, Tensor]) -> list[Tensor]:
        """(cells,) codes of batch and categorical covariates, as :attr:`n_categories` counts them."""
        codes = [read(REGISTRY_KEYS.BATCH_KEY).long().reshape(-1)]
        if REGISTRY_KEYS.CAT_COVS_KEY in tensors:
            codes += list(read(REGISTRY_KEYS.CAT_COVS_KEY).long().T)
        return codes

    @property
    def dispersion(self) -> Tensor:
        """(genes,) inverse dispersion of the counts."""
        return self.log_dispersion.clamp(-8.0, 8.0).exp()

    # ------------------------------------------------------------------ the model

    def draw_condition(self, dosage: Tensor, n_particles: int) -> tuple[Tensor, Tensor]:
        """Draw what the perturbations of cells do, and what this draw costs.

        Parameters
        ----------
        dosage
            (cells, n_tokens)
        n_particles
            Number of draws.

        Returns
        -------
        condition
            (n_particles, cells, n_latent) shifts; of the conditional VAE (1, cells, n_tokens) the dosages themselves.
        kl
            (n_particles, cells) share of each cell in the KL divergence of the tokens that it carries: over an epoch each token
            counts once.
        """
        if self.mechanisms is None:
            return dosage[None], dosage.new_zeros(1, len(dosage))
        weight = (dosage != 0).to(dosage) * self._inverse_counts()
        if self.options.shared_draws:
            used = (dosage != 0).any(0).nonzero().squeeze(1)
            draw = self.mechanisms.draw(used, n_particles)
            return dosage[:, used] @ draw.shift, draw.kl @ weight[:, used].T
        cell, token = dosage.nonzero(as_tuple=True)
        draw = self.mechanisms.draw(token, n_particles)
        shift = dosage.new_zeros(n_particles, len(dosage), self.n_shift)
        kl = dosage.new_zeros(n_particles, len(dosage))
        return (
            shift.index_add(1, cell, dosage[cell, token][:, None] * draw.shift),
            kl.index_add(1, cell, weight[cell, token] * draw.kl),
        )

    def _inverse_counts(self) -> Tensor:
        """(n_tokens,) one over the number of cells of the split that carry each token; 0 where there are none."""
        counts = self.cells_per_token
        if not self.training and bool(self.validation_cells_per_token.any()):
            counts = self.validation_cells_per_token
        return torch.where(counts > 0, 1.0 / counts.clamp_min(1.0), 0.0)

    def encode(self, expression: Tensor, condition: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance, (..., cells, n_latent), of the basal state given standardised expression and condition (..., cells, n)."""
        if self.options.posterior == "network":
            inputs = torch.cat([expression.expand(*condition.shape[:-1], -1), condition], -1)
            return self.encoder(torch.cat([inputs, covariates.expand(*condition.shape[:-1], -1)], -1))
        mean, variance = self.encoder(torch.cat([expression, covariates], -1))
        if self.options.posterior == "mean-field" or self.mechanisms is None:
            return mean, variance
        # what the cell says of u = z + shift is a Gaussian, and so is the prior of u around the shift: Bayes' rule
        return (mean - condition) / (1.0 + variance), (variance / (1.0 + variance)).expand_as(condition)

    def combine(self, z: Tensor, condition: Tensor) -> Tensor:
        """(..., cells, n) input of the decoder."""
        if self.concatenates:
            shape = torch.broadcast_shapes(z.shape[:-1], condition.shape[:-1])
            return torch.cat([z.expand(*shape, -1), condition.expand(*shape, -1)], -1)
        return z + condition

    def complete(
        self, condition: Tensor, tensors: dict[str, Tensor], seed: int | None = None, of_source: bool = False
    ) -> Tensor:
        """What :meth:`encode` and :meth:`decode` take, from what the perturbations of cells do: here the same.

        A model in which more than perturbations moves a cell adds it; ``of_source`` as for :meth:`covariates`.
        """
        return condition

    def _get_inference_input(self, tensors: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        x = tensors[REGISTRY_KEYS.X_KEY]
        return {
            "expression": self.standardize(self.expression(x, self.library(tensors))),
            "dosage": tensors[CAUSAL_KEYS.PERTURBATION],
            "covariates": self.covariates(tensors),
        }

    @auto_move_data
    def inference(
        self, expression: Tensor, dosage: Tensor, covariates: Tensor, n_samples: int | None = None
    ) -> dict[str, Tensor]:
        """Draw global variables and the basal state, with a leading dimension of particles."""
        condition, kl_global = self.draw_condition(dosage, n_samples or self.options.n_particles)
        return {"kl_global": kl_global, **self.draw_basal(expression, condition, covariates)}

    def draw_basal(self, expression: Tensor, condition: Tensor, covariates: Tensor) -> dict[str, Tensor]:
        """Basal states of cells under conditions (particles, cells, n): a draw ``z`` with the posterior it comes from."""
        mean, variance = self.encode(expression, condition, covariates)
        shape = torch.broadcast_shapes(mean.shape, (len(condition), len(expression), self.n_latent))
        z = mean + variance.sqrt() * torch.randn(shape, device=mean.device, dtype=mean.dtype)
        return {"qz_mean": mean, "qz_variance": variance, "z": z, "condition": condition}

    def _get_generative_input(
        self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {
            "z": inference_outputs["z"],
            "condition": inference_outputs["condition"],
            "covariates": self.covariates(tensors),
            "library": self.library(tensors),
        }

    @auto_move_data
    def generative(self, z: Tensor, condition: Tensor, covariates: Tensor, library: Tensor) -> dict[str, Tensor]:
        """(particles, cells, genes) expected counts."""
        return {"mean": self.decode(z, condition, covariates, library)}

    def decode(
        self, z: Tensor, condition: Tensor, covariates: Tensor, library: Tensor, remainder: Tensor | None = None
    ) -> Tensor:
        """(..., cells, genes) expected counts on a library (cells, 1); ``remainder`` is that of :meth:`remainder_of`."""
        return library * self.decoder(self.combine(z, condition), covariates, remainder).exp() + _LOWEST_MEAN

    def log_likelihood(self, x: Tensor, mean: Tensor) -> Tensor:
        """(particles, cells) log likelihood of counts (cells, genes) given expected ones (particles, cells, genes)."""
        counts = x.expand_as(mean).reshape(-1, self.n_genes)
        return nb_log_likelihood(counts, mean.reshape(-1, self.n_genes), self.dispersion).view(mean.shape[:-1])

    def kl_local(self, inference_outputs: dict[str, Tensor]) -> Tensor:
        """(particles, cells) KL divergence of the basal state: exact, or its value at the draw."""
        mean, variance, z = (inference_outputs[key] for key in ("qz_mean", "qz_variance", "z"))
        if self.options.analytic_kl:
            return kl_standard_normal(mean, variance).sum(-1).expand(z.shape[:-1])
        return (log_normal(z, mean, variance.sqrt()) - log_normal(z, 0.0, 1.0)).sum(-1)

    def loss(
        self,
        tensors: dict[str, Tensor],
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, Tensor],
        kl_weight: float = 1.0,
    ) -> LossOutput:
        """Negative evidence lower bound per cell, its global terms spread over the cells that they concern.

        Parameters
        ----------
        kl_weight
            Weight of all KL divergences.
        """
        x = tensors[REGISTRY_KEYS.X_KEY]
        reconstruction = -self.log_likelihood(x, generative_outputs["mean"]).mean(0)
        weight = self.cell_weight(tensors)
        if weight is not None:
            reconstruction = weight * reconstruction
        kl_local = self.kl_local(inference_outputs).mean(0)
        kl_global = inference_outputs["kl_global"].mean(0)
        extra = self.extra_terms(tensors, inference_outputs)
        loss = (reconstruction + kl_weight * (kl_local + kl_global)).mean() + sum(extra.values())
        return LossOutput(
            loss=loss,
            reconstruction_loss=reconstruction,
            kl_local={"kl_basal": kl_local, "kl_mechanisms": kl_global},
            extra_metrics={name: value.detach() for name, value in extra.items()},
        )

    def cell_weight(self, tensors: dict[str, Tensor]) -> Tensor | None:
        """(cells,) weights of the likelihoods of cells; ``None`` is 1."""
        return None

    def extra_terms(self, tensors: dict[str, Tensor], inference_outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named terms of the loss beside the lower bound; they are logged under their names."""
        return {}
