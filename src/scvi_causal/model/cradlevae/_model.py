"""CRADLEVAE: the public class."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from scvi import settings

from scvi_causal._compat import FIELD_REGISTRIES_KEY, STATE_REGISTRY_KEY
from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal._docs import docs
from scvi_causal.data._messages import did_you_mean, listed, plural
from scvi_causal.data.fields import QualityField
from scvi_causal.model.base._request import check_rows
from scvi_causal.model.cradlevae._artifact_start import start_artifacts
from scvi_causal.model.cradlevae._measures import ArtifactMeasuresMixin
from scvi_causal.model.cradlevae._module import CRADLEVAEModule
from scvi_causal.model.cradlevae._options import Artifact, ArtifactLoss, QualityWeights, artifact_options
from scvi_causal.model.cradlevae._plan import CRADLEVAETrainingPlan, count_quality
from scvi_causal.model.samsvae import SAMSVAE
from scvi_causal.model.samsvae._start import compared_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scvi_causal.model.base._scales import Output
    from scvi_causal.model.cradlevae._options import ArtifactOptions
    from scvi_causal.model.samsvae._options import Preset


class CRADLEVAE(ArtifactMeasuresMixin, SAMSVAE):
    """SAMS-VAE that takes technical artifacts apart from perturbations :cite:p:`Baek2025CRADLEVAE`.

    Cells that fail quality control are kept for training. What they have in common, beside what their perturbations do, is a latent
    artifact that the quality label switches on; switched off, it is gone from predictions, from generated cells, and from observed ones.

    Parameters
    ----------
    adata
        AnnData with counts that was set up with :meth:`setup_anndata`.
    registry
        Registry of a saved model, instead of ``adata``.
    preset
        ``"recommended"``, or ``"paper"`` for the published objective, networks and schedule; see the user guide for what differs and
        why. Options that are not given are those of the preset.
    artifact
        Where the artifact enters. ``"add"``: a shift of latent variables, like that of a perturbation but without a mask. ``"concat"``:
        basal state, shift and artifact are inputs of the decoder side by side (as published).
    quality_weights
        Weights of the likelihoods of cells. ``"none"``: all cells count alike. ``"balanced"``: the classes count alike, and the mean weight
        of the training cells is 1. ``"published"``: passing cells have the share of failed ones in the batch as weight, and the other way
        round.
    quality_covariate
        Whether the artifact also acts on the log shares of genes directly, as a batch does, and the encoder is told the quality.
    artifact_loss
        ``"matched"``: squared difference between the mean basal states of the quality classes with the same perturbations, each encoded as
        what it is. ``"intended"``: KL divergence between the basal states of a cell and of a reference profile, a mean of up to 50 training
        cells of the other quality class with the same perturbation, both encoded as of that class. ``"published"``: as published, with
        failed cells as reference of all. ``"none"``: none.
    artifact_loss_weight
        Its weight.
    **options
        Options of :class:`SAMSVAE`.

    Examples
    --------
    >>> import scvi_causal
    >>> simulation = scvi_causal.data.simulate_mechanisms(
    ...     n_tokens=4, n_cells_per_token=30, n_control=60, failed=0.3, seed=0
    ... )
    >>> adata = simulation.adata
    >>> adata.obs["quality"] = adata.obs["failed"].map({True: "fail", False: "pass"})
    >>> scvi_causal.CRADLEVAE.setup_anndata(adata)
    >>> model = scvi_causal.CRADLEVAE(adata, n_latent=10)
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> model.predict_counterfactual(quality="pass")  # every cell as it would be without the artifact
    >>> adata.layers["counterfactual"].shape == adata.shape
    True
    """

    _module_cls = CRADLEVAEModule
    _training_plan_cls = CRADLEVAETrainingPlan
    _own_options: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        adata: AnnData | None = None,
        registry: dict | None = None,
        preset: Preset = "recommended",
        artifact: Artifact | None = None,
        quality_weights: QualityWeights | None = None,
        quality_covariate: bool | None = None,
        artifact_loss: ArtifactLoss | None = None,
        artifact_loss_weight: float | None = None,
        **options,
    ):
        self._own_options = {
            **self._own_options,
            "artifact": artifact,
            "quality_weights": quality_weights,
            "quality_covariate": quality_covariate,
            "artifact_loss": artifact_loss,
            "artifact_loss_weight": artifact_loss_weight,
        }
        super().__init__(adata, registry, preset, **options)
        self._model_summary_string += f" quality: {', '.join(map(str, self._quality_classes))}."
        self.init_params_ = self._get_init_params(locals())

    # ------------------------------------------------------------------ set-up

    @classmethod
    @docs.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        perturbation_key: str = "perturbation",
        control_category: str | list[str] = "control",
        layer: str | None = None,
        dosage_key: str | None = None,
        perturbation_separator: str | None = "+",
        batch_key: str | None = None,
        categorical_covariate_keys: list[str] | None = None,
        continuous_covariate_keys: list[str] | None = None,
        size_factor_key: str | None = None,
        grn_key: str | None = None,
        perturbation_features_key: str | None = None,
        extra_tokens: list[str] | None = None,
        quality_key: str = "quality",
        quality_pass_category: str | bool = "pass",
        **kwargs,
    ) -> None:
        """%(summary)s

        Parameters
        ----------
        %(param_adata)s
        %(param_perturbation_key)s
        %(param_control_category)s
        %(param_layer)s
        %(param_dosage_key)s
        %(param_perturbation_separator)s
        %(param_batch_key)s
        %(param_cat_cov_keys)s
        %(param_cont_cov_keys)s
        %(param_size_factor)s
        %(param_grn_key)s
        %(param_perturbation_features_key)s
        %(param_extra_tokens)s
        quality_key
            Column of ``adata.obs`` with the quality of each cell, as :func:`~scvi_causal.data.annotate_quality` makes it.
        quality_pass_category
            Its value for cells that pass; every other value is a kind of failure with an artifact of its own. ``True`` or ``False`` for
            a column of these.

        Raises
        ------
        ValueError
            If something does not fit. The message names the values and says what to do; ``adata`` stays as it was.
        """
        arguments = cls._get_setup_method_args(**locals())
        field = QualityField(quality_key, quality_pass_category)
        source = kwargs.get("source_registry")
        if source is None:
            field.check(adata)
        else:
            QualityField.check_query(adata, source[FIELD_REGISTRIES_KEY][CAUSAL_KEYS.QUALITY][STATE_REGISTRY_KEY])
        cls._register(adata, arguments, extra_fields=[field], **kwargs)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        if adata is not None and self.adata_manager is not None and not self._is_registered(adata):
            QualityField.check_query(adata, self._field_state(CAUSAL_KEYS.QUALITY))
        return super()._validate_anndata(adata, copy_if_view)

    @property
    def _quality_classes(self) -> list[str]:
        """Quality classes; the first one passes."""
        return [str(name) for name in self._field_state(CAUSAL_KEYS.QUALITY)["categories"]]

    @property
    def _quality_key(self) -> str:
        return self._field_state(CAUSAL_KEYS.QUALITY)["original_key"]

    def _settable_covariates(self) -> dict[str, tuple]:
        return {self._quality_key: (CAUSAL_KEYS.QUALITY, 0, np.asarray(self._quality_classes, dtype=object))}

    def _resolve_options(self, preset: Preset, **given: Any) -> ArtifactOptions:
        return artifact_options(preset, **{**given, **self._own_options})

    def _average_at(self) -> dict[str, str]:
        return dict.fromkeys(self._settable_covariates(), self._quality_classes[0])

    def _data_sizes(self) -> dict[str, Any]:
        return {**super()._data_sizes(), "n_kinds": len(self._quality_classes) - 1}

    # ------------------------------------------------------------------ training

    def _before_training(self, train_idx: np.ndarray | None) -> None:
        if train_idx is not None and not self.is_trained_:
            counts = count_quality(self.adata_manager, np.asarray(train_idx), self.module.n_kinds)
            self._check_training_quality(counts)
            self.module.cells_per_quality.copy_(torch.from_numpy(counts))
        first = not self.is_trained_
        super()._before_training(train_idx)
        if first and self.module.options.start_at_effects and self.module.mechanisms is not None:
            start_artifacts(self.module, self.adata_manager, np.sort(np.asarray(train_idx)))

    def _check_training_quality(self, counts: np.ndarray) -> None:
        classes = self._quality_classes
        if not counts[0]:
            raise ValueError(
                f"None of the {int(counts.sum()):,} training cells passes (obs[{self._quality_key!r}] = {classes[0]!r}): an artifact is what "
                "failed cells have and passing ones do not. Put passing cells into the training split, or be less strict."
            )
        if not counts[1:].any():
            warnings.warn(
                f"All {int(counts[0]):,} training cells pass: there is no artifact to learn, and the model is a SAMSVAE.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        elif missing := [name for name, n in zip(classes, counts, strict=True) if not n]:
            warnings.warn(
                f"No training cell is {listed(missing)}: this artifact stays unknown, and is taken to do nothing.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )

    def _effect_rows(self) -> tuple[np.ndarray, np.ndarray | None]:
        return compared_cells(self.adata_manager, super()._effect_rows()[0])

    # ------------------------------------------------------------------ predictions

    @docs.dedent
    def predict_counterfactual(
        self,
        perturbation: str | Sequence[str] | None = None,
        adata: AnnData | None = None,
        *,
        quality: str | None = None,
        indices: Sequence[int] | None = None,
        dosage: float | str | Sequence | None = None,
        covariates: dict[str, Any] | None = None,
        features: pd.DataFrame | None = None,
        sample: bool = False,
        n_samples: int = 1,
        output: Output = "normalized",
        key_added: str | None = "counterfactual",
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> AnnData | None:
        """Predict cells under a perturbation, with or without the artifact.

        Parameters
        ----------
        %(param_perturbation)s With ``quality`` given, ``None`` leaves every cell its own perturbation and starts from *itself*: only
            its quality is edited.
        %(param_query_adata)s
        quality
            Quality class of the predicted cells: ``"pass"`` takes artifacts off, the name of a kind of failure puts its artifact on.
            ``None`` leaves that of the source. A cell that has this quality already, and whose perturbation does not change, comes back
            as it is.
        %(param_indices)s
        %(param_dosage)s
        %(param_covariates)s
        %(param_features)s
        sample, n_samples, output, key_added
            As for :meth:`SAMSVAE.predict_counterfactual`. ``output="delta"`` is the effect of the perturbation at the quality asked for.
        %(param_batch_size)s
        %(param_seed)s

        Returns
        -------
        As of :meth:`SAMSVAE.predict_counterfactual`; the quality is in the provenance, and in ``obs`` of a new AnnData.

        Raises
        ------
        ValueError
            If a target cannot be predicted, or there is no such quality class among the training cells.
        """
        covariates = dict(covariates or {})
        if quality is not None:
            if str(covariates.get(self._quality_key, quality)) != str(quality):
                raise ValueError(
                    f"quality={quality!r}, and covariates={{{self._quality_key!r}: {covariates[self._quality_key]!r}}}: pass one of them."
                )
            covariates[self._quality_key] = quality
        if self._quality_key in covariates:
            self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
            self._quality_code(covariates[self._quality_key])
        if quality is not None and perturbation is None:
            if output == "delta":
                raise ValueError(
                    "output='delta' is the change that a perturbation makes, and without one there is none. Ask for "
                    "output='log1p' and subtract that of the observed cells, or see get_artifact_effects."
                )
            adata = self._check_query(adata)
            rows = np.arange(adata.n_obs) if indices is None else check_rows(indices, adata.n_obs)
            perturbation, own_dosage = self._own_conditions(adata, rows)
            dosage = own_dosage if dosage is None else dosage
        return super().predict_counterfactual(
            perturbation,
            adata,
            indices=indices,
            dosage=dosage,
            covariates=covariates,
            features=features,
            sample=sample,
            n_samples=n_samples,
            output=output,
            key_added=key_added,
            batch_size=batch_size,
            seed=seed,
        )

    def _quality_code(self, quality: object) -> int:
        """Code of a quality class; raises ``ValueError`` for one that was not in the training cells."""
        classes = self._quality_classes
        if str(quality) not in classes:
            raise ValueError(
                f"quality={quality!r} is none of {listed(classes)} (the first passes).{did_you_mean(str(quality), classes)}"
            )
        code = classes.index(str(quality))
        if not float(self.module.cells_per_quality[code]):
            n = plural(int(self.module.cells_per_quality.sum()), "training cell")
            raise ValueError(f"quality={quality!r} cannot be predicted: none of the {n} was of this class.")
        return code
