"""VCI: the public class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scvi_causal.data import Vocabulary, canonical_labels
from scvi_causal.model.base import CausalModel
from scvi_causal.model.base._data_type import DataType, GeneLikelihood, check_choice, resolve_data_type
from scvi_causal.model.vci._module import VCIModule
from scvi_causal.model.vci._options import (
    IN_BATCH,
    DistributionLoss,
    Divergence,
    Normalization,
    Outcome,
    Preset,
    SecondEncoder,
    Treatments,
    VCIOptions,
    resolve_options,
)
from scvi_causal.model.vci._treatments import build_table
from scvi_causal.model.vci._unseen import normalised_features, set_unseen_codes
from scvi_causal.train import AdversarialCausalTrainingPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from torch import Tensor

_IN_BLOCKS = 32  # cells of one condition in one stratum, where predictions are held against cells of the batch


class VCI(CausalModel):
    """Variational causal inference :cite:p:`Wu2023GraphVCI`.

    The state of a cell is abducted from its expression, what it received, and its covariates; decoded under another treatment it
    gives a counterfactual cell. Three things are learned from: the cell itself, the population that was observed under the
    other treatment in the same stratum, and that the counterfactual cell has to lead back to the same state.

    Parameters
    ----------
    adata
        AnnData that was set up with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of ``adata``.
    preset
        ``"recommended"``, or ``"paper"`` for the published networks, losses and schedule; see the user guide for what differs
        and why. It sets all options below that are not given.
    gene_likelihood
        ``"nb"`` for counts or ``"normal"`` for continuous data or the log of normalised counts (as published); ``"auto"`` looks
        at the data.
    data_type
        ``"counts"`` or ``"continuous"``; ``"auto"`` looks at the data.
    n_latent, n_hidden, n_layers, dropout_rate
        Of encoder and decoder.
    normalization
        ``"none"``, ``"layer"``, or ``"batch"`` (as published: factual, counterfactual and repeated cells share its statistics).
    distribution_loss
        What holds counterfactuals against the cells that were observed under the target in the same stratum. ``"moments"``: the
        mean change of a population against the observed difference of groups. ``"match"``: each predicted cell against that mean (as
        published). ``"kernel"``: a kernel density estimate, gene by gene. ``"energy"``: the energy distance of the two
        populations. ``"discriminator"``: a network that tells them apart, with its own optimizer.
    divergence
        ``"kl"``, or ``"published"``: without the division by the variance.
    relu_heads
        Whether mean and scale of the posterior pass a ReLU, which keeps the mean above 0 and the scale above 0.69 (as published).
    counterfactual_treatments
        What a cell is asked for in training. ``"any"``: any treatment, as often as it was observed; ``"observed"``: one that was
        observed in its stratum; ``"published"``: any but control, and none whose label contains the name of a control.
    include_control
        Whether control is among them.
    shrink_effects
        Whether the observed differences of groups are first shrunk as far as sampling noise explains them (empirical Bayes, as in
        :class:`~scvi_causal.SCCVAE`).
    encode_covariates
        Whether the encoder is told the categorical covariates of a cell (as published). Without, the state of a cell says what kind
        of cell it is, and a cell type whose treated cells were never seen is decoded like those that resemble it. Batch and
        continuous covariates are always told.
    counterfactual_outcome
        What is encoded as the outcome under the target: ``"abducted"``, the cell's own expression with what the decoder changes;
        ``"mean"`` of the decoder; ``"sample"``, a draw (as published; Gaussian only).
    second_encoder
        ``"live"``, or ``"frozen"``: counterfactuals are encoded by a copy that is renewed after every epoch.
    n_draws
        Draws from the posterior per cell and step.

    Examples
    --------
    >>> import scvi_causal
    >>> adata = scvi_causal.data.simulate_screen(n_genes=20, n_cells_per_perturbation=20, n_control=60, seed=0).adata
    >>> scvi_causal.VCI.setup_anndata(adata)
    >>> model = scvi_causal.VCI(adata)
    >>> model.train(max_epochs=2, progress_bar_refresh_rate=0)
    >>> model.predict_counterfactual()
    >>> adata.layers["counterfactual"].shape == adata.shape
    True

    Notes
    -----
    Every cell can be a source, perturbed ones too: what it received is an input of the encoder.
    """

    allow_missing_features: ClassVar[bool] = True
    unseen: ClassVar[tuple[str, ...]] = ("features", "combinations")
    can_abduct: ClassVar[bool] = True

    _training_plan_cls = AdversarialCausalTrainingPlan
    _module_cls: ClassVar[type[VCIModule]] = VCIModule

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        preset: Preset = "recommended",
        gene_likelihood: GeneLikelihood = "auto",
        data_type: DataType = "auto",
        n_latent: int | None = None,
        n_hidden: int | None = None,
        n_layers: int | None = None,
        dropout_rate: float | None = None,
        normalization: Normalization | None = None,
        distribution_loss: DistributionLoss | None = None,
        divergence: Divergence | None = None,
        relu_heads: bool | None = None,
        counterfactual_treatments: Treatments | None = None,
        include_control: bool | None = None,
        shrink_effects: bool | None = None,
        encode_covariates: bool | None = None,
        counterfactual_outcome: Outcome | None = None,
        second_encoder: SecondEncoder | None = None,
        n_draws: int | None = None,
    ):
        super().__init__(adata, registry)
        check_choice("gene_likelihood", gene_likelihood, get_args(GeneLikelihood))
        check_choice("data_type", data_type, get_args(DataType))
        self._preset = preset
        self._options = self._resolve_options(
            preset,
            {
                "n_latent": n_latent,
                "n_hidden": n_hidden,
                "n_layers": n_layers,
                "dropout_rate": dropout_rate,
                "normalization": normalization,
                "distribution_loss": distribution_loss,
                "divergence": divergence,
                "relu_heads": relu_heads,
                "treatments": counterfactual_treatments,
                "include_control": include_control,
                "shrink_effects": shrink_effects,
                "encode_covariates": encode_covariates,
                "outcome": counterfactual_outcome,
                "second_encoder": second_encoder,
                "n_draws": n_draws,
            },
        )
        data_type = resolve_data_type(self, data_type)
        self._log_normalize = data_type == "counts"
        gene_likelihood = self._resolve_likelihood(gene_likelihood, data_type)
        self.module = self._module_cls(**self._module_arguments(gene_likelihood))
        self._set_training_defaults()
        self._model_summary_string = (
            f"{type(self).__name__} with preset: {preset}, gene_likelihood: {gene_likelihood}, "
            f"distribution_loss: {self._options.distribution_loss}, n_latent: {self._options.n_latent}."
        )
        self.init_params_ = self._get_init_params(locals())

    # ------------------------------------------------------------------ construction; a subclass may change all of it

    def _resolve_options(self, preset: str, given: dict[str, Any]) -> VCIOptions:
        return resolve_options(preset, given)

    def _resolve_likelihood(self, gene_likelihood: str, data_type: str) -> str:
        if gene_likelihood == "nb" and data_type == "continuous":
            raise ValueError(
                "gene_likelihood='nb' needs raw counts, and the data have negative or fractional values. Register the layer with "
                "the counts (layer=), or use gene_likelihood='normal'."
            )
        if gene_likelihood == "auto":
            gene_likelihood = "nb" if data_type == "counts" and self._preset != "paper" else "normal"
        if gene_likelihood == "nb" and self._options.outcome == "sample":
            raise ValueError(
                "A draw of counts has no gradient, so that counterfactual_outcome='sample' (of preset='paper') needs "
                "gene_likelihood='normal'; with counts use counterfactual_outcome='abducted' or 'mean'."
            )
        return gene_likelihood

    def _module_arguments(self, gene_likelihood: str) -> dict[str, Any]:
        """Arguments of the module; a subclass adds its own."""
        tokens = self._get_token_inputs(list(self._vocabulary.tokens), None)
        mappings = self._field_state(REGISTRY_KEYS.CAT_COVS_KEY).get("mappings", {})
        return {
            "n_genes": self.summary_stats.n_vars,
            "n_tokens": len(self._vocabulary),
            "features": tokens.get("features"),
            "n_batch": self.summary_stats.n_batch,
            "n_categories": [len(mappings[name]) for name in mappings],
            "n_continuous": len(self._setup_arg("continuous_covariate_keys") or []),
            "gene_likelihood": gene_likelihood,
            "log_normalize": self._log_normalize,
            "options": self._options,
        }

    def _set_training_defaults(self) -> None:
        self._datasplitter_defaults = {}
        if self._options.distribution_loss in IN_BATCH:
            self._datasplitter_defaults = {"grouped": True, "cells_per_group": _IN_BLOCKS}
        self._default_batch_size = 256
        self._plan_defaults = {
            "lr": 2e-3,
            "n_epochs_kl_warmup": None,
            "distribution_weight": 10.0,
            "prior_weight": 1e-3,
            "gradient_clip_val": 10.0,
        }
        if self._preset == "paper":
            self._default_batch_size = 64
            self._plan_defaults = {
                "lr": 3e-4,
                "weight_decay": 4e-7,
                "n_epochs_kl_warmup": None,
                "distribution_weight": 1.7,
                "divergence_weight": 0.1,
            }

    def _default_max_epochs(self, datamodule: Any) -> int:
        """1,000 as published; otherwise about 800 steps."""
        if self._preset == "paper":
            return 1_000
        n_steps = max(1, self.adata.n_obs // self._default_batch_size)
        return int(np.clip(round(800 / n_steps), 10, 300))

    def _needs_counts(self) -> bool:
        return self._log_normalize

    # ------------------------------------------------------------------ tokens

    def _get_token_inputs(self, tokens: list[str], features: pd.DataFrame | None) -> dict[str, Tensor]:
        inputs = super()._get_token_inputs(tokens, features)
        matrix, _ = normalised_features(self, tokens, features)
        return inputs if matrix is None else {**inputs, "features": torch.from_numpy(matrix.astype(np.float32))}

    def _predictable(self, tokens: list[str], features: pd.DataFrame | None = None) -> list[tuple[bool, str]]:
        """Whether each token can be a target, and what its prediction then rests on."""
        informative, seen = bool(self.module.treatment_code.feature_map.any()), set(self.seen_tokens_.tolist())
        found = []
        for token, (ok, reason) in zip(tokens, super()._predictable(tokens, features), strict=True):
            if ok and token not in seen and not informative:
                reason = "not seen in training, gets the mean response: its features predict no better than that"
            found.append((ok, reason))
        return found

    def _perturbation_vectors(
        self, labels: np.ndarray, features: pd.DataFrame | None
    ) -> tuple[np.ndarray, Sequence[str]]:
        """What the decoder makes of the code of a treatment in its first layer."""
        vocabulary = self._get_vocabulary()
        tokens = Vocabulary.from_labels(list(labels), vocabulary.separator, vocabulary.control_categories)
        with torch.inference_mode():
            inputs = {
                k: v.to(self.module.device) for k, v in self._get_token_inputs(list(tokens.tokens), features).items()
            }
            dosage = torch.from_numpy(tokens.encode(labels).toarray()).float().to(self.module.device)
            vectors = self.module.treatment_vectors(dosage, inputs).cpu().numpy()
        return vectors, [f"treatment_{i}" for i in range(vectors.shape[1])]

    # ------------------------------------------------------------------ training

    def _before_training(self, train_idx: np.ndarray | None) -> None:
        """Make the treatment table from the training cells."""
        rows = np.arange(self.adata.n_obs) if train_idx is None else np.sort(np.asarray(train_idx))
        options = self._options
        excluded = self._names_a_control() if options.treatments == "published" else None
        column = {gene: i for i, gene in enumerate(self._var_names())}
        table = build_table(
            self.adata_manager,
            rows,
            self.module.n_genes,
            "log1p" if self._log_normalize else "continuous",
            options.treatments,
            options.include_control,
            excluded,
            options.shrink_effects,
            np.array([column.get(token, -1) for token in self._vocabulary.tokens], dtype=np.int64),
        )
        self.module.table = table.to(self.module.device)
        self.module.treatment_code.trained.fill_(True)

    def _after_training(self) -> None:
        """Say what stands in for tokens without cells; the treatment table has served."""
        self.module.table = None
        set_unseen_codes(self, np.sort(np.asarray(self.train_indices)))

    def _names_a_control(self) -> np.ndarray:
        """(n_obs,) cells whose label contains the name of a control, which the published sampler leaves out."""
        vocabulary = self._get_vocabulary()
        labels, _ = self._own_conditions(self.adata, np.arange(self.adata.n_obs))
        labels = canonical_labels(labels, vocabulary.separator, vocabulary.control_categories)
        controls = vocabulary.control_categories
        return np.array([any(control in str(label) for control in controls) for label in labels])

    def _keeps_best(self, datamodule: Any) -> bool | None:
        """The best epoch is kept wherever there are cells to tell it by."""
        return getattr(datamodule, "n_val", 0) > 0
