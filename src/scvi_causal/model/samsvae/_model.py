"""SAMSVAE: the public class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.model.base import CausalModel
from scvi_causal.model.samsvae._calibrate import TrainingEffects, calibrate_sizes
from scvi_causal.model.samsvae._fit import fit_before_training, fit_feature_map
from scvi_causal.model.samsvae._generation import GenerationMixin
from scvi_causal.model.samsvae._measures import MeasuresMixin
from scvi_causal.model.samsvae._module import SAMSVAEModule
from scvi_causal.model.samsvae._options import (
    SIZES,
    Guide,
    Mechanism,
    ModuleOptions,
    Posterior,
    Preset,
    module_options,
)
from scvi_causal.model.samsvae._plan import SAMSVAETrainingPlan
from scvi_causal.model.samsvae._remainder import fit_remainder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scvi_causal.nn import MaskGradient


class SAMSVAE(MeasuresMixin, GenerationMixin, CausalModel):
    """Sparse additive mechanism shift VAE :cite:p:`Bereket2023SAMSVAE`.

    A VAE of all cells. The latent state of a cell is a basal state plus what its perturbations add: for each token an embedding times a
    sparse binary mask, both of which are uncertain and shared by all cells. Shifts of a combination add up; a cell under another
    perturbation keeps its basal state.

    Parameters
    ----------
    adata
        AnnData with counts that was set up with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of ``adata``.
    preset
        ``"recommended"``, or ``"paper"`` for the published objective, networks and schedule; see the user guide for what differs and
        why. Options that are not given are those of the preset.
    mechanism
        What a perturbation is. ``"sparse"``: mask times embedding. ``"dense"``: an embedding (CPA-VAE). ``"one-hot"``: the dosages are an
        input of the decoder (conditional VAE).
    n_latent
        Latent dimensions; 50, or 200 as published.
    n_hidden, n_layers
        Width and number of blocks of encoder and decoder; the width is 128, or 400 as published.
    mask_prior, embedding_prior_scale
        Prior probability that a token acts on a dimension (0.1, or 0.01 as published), and prior standard deviation of embeddings (1).
    guide
        What is believed of an embedding given its mask. ``"spike-and-slab"``: a Gaussian where the mask is on, the prior where it is off.
        ``"correlated"``: a network of the mask (the published one). ``"mean-field"``: a Gaussian, whatever the mask.
    n_guide_hidden, n_guide_layers
        Of the network of the correlated guide.
    posterior
        Where the basal state of a cell comes from. ``"product"``: an encoder says where the shifted state is, and the prior of the
        perturbation is combined with that by Bayes' rule. ``"network"``: the encoder is told the shift (as published). ``"mean-field"``: it
        knows nothing of it.
    analytic_kl
        Whether KL divergences are exact where they can be, or those of the draws.
    mask_gradient
        Of the binary masks, see :func:`~scvi_causal.nn.straight_through_bernoulli`.
    n_particles, shared_draws
        Draws of masks and embeddings per step, and whether one draw serves all cells of a batch. Both settings have the same expectation;
        draws of each cell's own are averaged over the batch.
    normalize_library
        Whether the encoder sees log1p of counts per 10,000, or of raw counts.
    linear_decoder
        Whether latent variables also act on the log shares of genes directly.
    start_at_effects
        Whether masks, embeddings and loadings start at a sparse factorisation of the effects of the training conditions. Needs
        ``linear_decoder``.
    calibrate
        Whether the shift of each token is multiplied by one number after training, so that drawn cells move as far as training cells did.
    remainder
        Whether the part of each token's population effect that drawn cells do not show after training is kept as a shift of the log
        shares of genes.
    abduct_counts
        Whether a predicted cell keeps the count noise of its source, see :class:`~scvi_causal.nn.AbductedCounts`; else counts are drawn
        anew.

    Examples
    --------
    >>> import scvi_causal
    >>> simulation = scvi_causal.data.simulate_mechanisms(n_tokens=5, n_cells_per_token=20, n_control=40, seed=0)
    >>> adata = simulation.adata
    >>> scvi_causal.SAMSVAE.setup_anndata(adata)
    >>> model = scvi_causal.SAMSVAE(adata, n_latent=10)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.predict_counterfactual("T00+T03")
    >>> adata.layers["counterfactual"].shape == adata.shape
    True
    >>> model.get_perturbation_masks().shape
    (5, 10)

    Notes
    -----
    A token that was not in the training cells has no shift: its prior says that it does nothing, which is not a prediction. It is refused,
    unless features of perturbations are registered, from which shifts are then predicted.
    """

    requires_counts: ClassVar[bool] = True
    unseen: ClassVar[tuple[str, ...]] = ("features", "combinations")
    can_abduct: ClassVar[bool] = True
    _module_cls = SAMSVAEModule
    _training_plan_cls = SAMSVAETrainingPlan

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        preset: Preset = "recommended",
        mechanism: Mechanism = "sparse",
        n_latent: int | None = None,
        n_hidden: int | None = None,
        n_layers: int = 1,
        mask_prior: float | None = None,
        embedding_prior_scale: float | None = None,
        guide: Guide | None = None,
        n_guide_hidden: int = 400,
        n_guide_layers: int = 4,
        posterior: Posterior | None = None,
        analytic_kl: bool | None = None,
        mask_gradient: MaskGradient | None = None,
        n_particles: int | None = None,
        shared_draws: bool | None = None,
        normalize_library: bool | None = None,
        linear_decoder: bool | None = None,
        start_at_effects: bool | None = None,
        calibrate: bool | None = None,
        remainder: bool | None = None,
        abduct_counts: bool | None = None,
    ):
        super().__init__(adata, registry)
        options = self._resolve_options(
            preset,
            mechanism=mechanism,
            mask_prior=mask_prior,
            embedding_prior_scale=embedding_prior_scale,
            guide=guide,
            n_guide_hidden=n_guide_hidden,
            n_guide_layers=n_guide_layers,
            posterior=posterior,
            analytic_kl=analytic_kl,
            mask_gradient=mask_gradient,
            n_particles=n_particles,
            shared_draws=shared_draws,
            normalize_library=normalize_library,
            linear_decoder=linear_decoder,
            start_at_effects=start_at_effects,
            calibrate=calibrate,
            remainder=remainder,
            abduct_counts=abduct_counts,
        )
        self._preset, sizes = preset, SIZES[preset]
        self.module = self._module_cls(
            self.summary_stats.n_vars,
            len(self._vocabulary),
            n_latent or sizes["n_latent"],
            n_hidden or sizes["n_hidden"],
            n_layers,
            options=options,
            **self._data_sizes(),
        )
        self._set_training_defaults()
        self._model_summary_string = (
            f"{type(self).__name__} with preset: {preset}, mechanism: {mechanism}, guide: {options.guide}, "
            f"n_latent: {self.module.n_latent}, mask_prior: {options.mask_prior}."
        )
        self.init_params_ = self._get_init_params(locals())

    def _resolve_options(self, preset: Preset, **given: Any) -> ModuleOptions:
        """Options of the module; a model with more of them overrides this."""
        return module_options(preset, **given)

    def _data_sizes(self) -> dict[str, Any]:
        """Arguments of the module that are told by the data."""
        return {
            "n_categories": self._n_categories(),
            "n_continuous": len(self._setup_arg("continuous_covariate_keys") or ()),
            "has_size_factor": self._setup_arg("size_factor_key") is not None,
            "n_features": self._n_features(),
        }

    def _n_categories(self) -> tuple[int, ...]:
        covariates = self._field_state(REGISTRY_KEYS.CAT_COVS_KEY).get("n_cats_per_key", ())
        batches = self._field_state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"]
        return (len(batches), *(int(n) for n in covariates))

    def _set_training_defaults(self) -> None:
        self._plan_defaults = {
            "lr": 3e-3,
            "mechanism_lr_factor": 5.0,
            "cosine_decay": True,
            "gradient_clip_val": 100.0,
        }
        if self._preset == "paper":
            self._plan_defaults = {
                "lr": 3e-4,
                "weight_decay": 1e-6,
                "n_epochs_kl_warmup": None,
                "gradient_clip_val": 100.0,
            }

    def _default_max_epochs(self, datamodule: Any) -> int:
        n_steps = max(1, self.adata.n_obs // self._default_batch_size)
        wanted = 30_000 if self._preset == "paper" else 1_000
        return int(np.clip(round(wanted / n_steps), 10, 2000))

    def _before_training(self, train_idx: np.ndarray | None) -> None:
        if self.is_trained_:
            return
        if train_idx is None:
            raise ValueError(
                f"{type(self).__name__} is trained on an AnnData: build it with one, and pass no datamodule."
            )
        if not self._dosage(self.adata)[train_idx].nnz:
            raise ValueError(
                f"None of the {len(train_idx):,} training cells is perturbed: there is no effect to learn. Check the split: "
                "perturbed cells have to be among 'train'."
            )
        device = self.module.device
        self.module.to("cpu")
        fit_before_training(self.module, self.adata_manager, np.sort(np.asarray(train_idx)))
        self.module.to(device)

    def _after_training(self) -> None:
        """Adjust sizes, keep what is missing, and learn from the seen tokens how shifts follow from features, where there are any."""
        self._fit_to_training_effects()
        if self.module.mechanisms is None or not self._has_features() or not len(self.seen_tokens_):
            return
        tokens = [str(token) for token in self.seen_tokens_]
        features, known = self._coded_features(tokens)
        index = np.array([self._vocabulary.index(token) for token in tokens])
        if not known.any():
            return
        fit_feature_map(self.module, features[known], index[known])
        everything, known = self._coded_features(list(self._vocabulary.tokens))
        shifts = self.module.shift_from_features(torch.from_numpy(everything).to(self.module.device))
        self.module.unseen_shift.copy_(shifts * torch.from_numpy(known).to(shifts.device)[:, None])

    def _effect_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Training cells that say what tokens do, and codes of them that are compared only where they agree."""
        return np.sort(np.asarray(self.train_indices)), None

    def _fit_to_training_effects(self) -> None:
        """Let drawn cells move as the training cells did."""
        sized = self.module.options.calibrate and self.module.mechanisms is not None
        if self.adata is None or not (sized or self.module.options.remainder):
            return
        observed = TrainingEffects(self, *self._effect_rows())
        if self.module.remainder is not None:
            self.module.remainder.clear()
        if sized:
            calibrate_sizes(self, observed)
        if self.module.remainder is not None:
            fit_remainder(self, observed)

    # ------------------------------------------------------------------ tokens

    def _n_features(self) -> int:
        return len(self._field_state(CAUSAL_KEYS.FEATURES).get("feature_names", ()))

    def _coded_features(self, tokens: list[str], features: pd.DataFrame | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(n_tokens, n) features of length 1, and which tokens have any: directions carry meaning, lengths popularity."""
        matrix, known = self._token_features(tokens, features)
        return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12), known

    def _get_token_inputs(self, tokens: list[str], features: pd.DataFrame | None) -> dict[str, torch.Tensor]:
        inputs = super()._get_token_inputs(tokens, features)
        if "features" in inputs:
            inputs["features"] = torch.from_numpy(self._coded_features(tokens, features)[0])
        return inputs

    def _provenance_extras(self, tokens: Sequence[str]) -> dict[str, Any]:
        """What predictions of unseen tokens rest on; where features predict no better than the mean of the seen ones, on that."""
        if not set(tokens) - set(self.seen_tokens_.tolist()):
            return {}
        return {
            "unseen_tokens_from": "features" if bool(self.module.feature_map.any()) else "the mean shift of seen tokens"
        }

    def _unseen_kinds(self) -> tuple[str, ...]:
        # a conditional VAE has nothing that features could predict, and without features only the prior would speak
        usable = self._has_features() and self.module.mechanisms is not None
        return ("features", "combinations") if usable else ("combinations",)

    def _perturbation_vectors(
        self, labels: np.ndarray, features: pd.DataFrame | None
    ) -> tuple[np.ndarray, Sequence[str]]:
        dosage = torch.from_numpy(self._vocabulary.encode(labels).toarray()).float().to(self.module.device)
        vectors = self.module.condition_of(dosage).detach().cpu().numpy()
        return vectors, [f"latent_{i}" for i in range(vectors.shape[1])]
