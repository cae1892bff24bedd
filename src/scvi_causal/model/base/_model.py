"""The base of every model: what is registered, what the model can do, what it has seen."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.model.base import BaseModelClass

from scvi_causal._compat import FIELD_REGISTRIES_KEY, SETUP_ARGS_KEY, STATE_REGISTRY_KEY, UUID_KEY
from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal._docs import docs
from scvi_causal.data import Vocabulary, validate_setup
from scvi_causal.data._messages import did_you_mean, listed
from scvi_causal.data._validate import validate_query
from scvi_causal.data.fields import FeaturesField, GRNField, PerturbationField
from scvi_causal.data.fields._features_field import check_features
from scvi_causal.dataloaders import CausalDataLoader

from ._counterfactual import CounterfactualMixin
from ._effects import EffectsMixin
from ._embedding import EmbeddingMixin
from ._grn import GRNMixin
from ._marginal import MarginalMixin
from ._training import TrainingMixin

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

_NOT_REGISTERED = "{name} needs {what}, and this AnnData was set up without. {how}"
HOW_GRN = (
    "Put the prior network in adata.uns['grn'] (a DataFrame source, target[, weight]) and run "
    "{name}.setup_anndata(adata, ...) again, or name its place with grn_key=."
)
HOW_FEATURES = (
    "Put a DataFrame (index: tokens, columns: features) in adata.uns and run "
    "{name}.setup_anndata(adata, ..., perturbation_features_key=...) again."
)


_CHECKED_KEYS = (
    "perturbation_key",
    "control_category",
    "layer",
    "dosage_key",
    "batch_key",
    "categorical_covariate_keys",
    "continuous_covariate_keys",
    "size_factor_key",
    "grn_key",
    "perturbation_features_key",
    "extra_tokens",
)
# what scvi-tools hands over when it sets up data as a saved model was set up
_OF_SCVI = ("source_registry", "extend_categories", "allow_missing_labels")


class CausalModel(
    CounterfactualMixin, EffectsMixin, MarginalMixin, GRNMixin, EmbeddingMixin, TrainingMixin, BaseModelClass
):
    """Base of all models of this package.

    A method subclasses it, builds a :class:`CausalModule` in ``__init__`` and gets ``setup_anndata``, training, and the
    whole public API of predictions. Its ``__init__`` takes ``adata=None, registry=None``, calls
    ``super().__init__(adata, registry)``, sets ``self.module`` and ends with
    ``self.init_params_ = self._get_init_params(locals())``.

    Attributes
    ----------
    requires_grn, requires_features, requires_counts
        What :meth:`setup_anndata` has to find.
    allow_missing_features
        Whether tokens may lack features where features are registered, because the model has another code for them.
    unseen
        How the model predicts what it was not trained on: any of ``"features"``, ``"graph"`` (tokens), ``"any"`` (every
        known token, without knowing anything about it), ``"combinations"`` (of predictable tokens); or ``"none"``.
    can_abduct
        Whether a counterfactual may start from a perturbed cell. If not, such a cell is replaced by a matched control.
    """

    _data_loader_cls = CausalDataLoader

    requires_grn: ClassVar[bool] = False
    requires_features: ClassVar[bool] = False
    requires_counts: ClassVar[bool] = False
    allow_missing_features: ClassVar[bool] = False
    unseen: ClassVar[str | tuple[str, ...]] = "none"
    can_abduct: ClassVar[bool] = False

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None):
        super().__init__(adata, registry)
        name = type(self).__name__
        if self.requires_grn and self._prior_grn().empty:
            raise ValueError(_NOT_REGISTERED.format(name=name, what="a prior network", how=HOW_GRN.format(name=name)))
        if self.requires_features and not self._has_features():
            raise ValueError(
                _NOT_REGISTERED.format(
                    name=name, what="features of the perturbations", how=HOW_FEATURES.format(name=name)
                )
            )
        self._vocabulary = Vocabulary.from_state(self._field_state(CAUSAL_KEYS.PERTURBATION))
        # what ends in "_" is saved with the model
        self.seen_tokens_: np.ndarray = np.array([], dtype=str)
        self.seen_conditions_: np.ndarray = np.array([], dtype=str)
        self.split_key_: str | None = None
        self.training_cells_: str | None = None

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

        Raises
        ------
        ValueError
            If something does not fit. The message names the values and says what to do; ``adata`` stays as it was.
        """
        cls._register(adata, cls._get_setup_method_args(**locals()), **kwargs)

    @classmethod
    def _register(cls, adata: AnnData, setup_method_args: dict, extra_fields: list | None = None, **kwargs) -> None:
        """Check, then register: what every ``setup_anndata`` ends with.

        A model with more keys overrides ``setup_anndata``, and passes the fields of these keys as ``extra_fields``.
        """
        args = setup_method_args[SETUP_ARGS_KEY]
        cls._refuse_unknown_keywords(kwargs, list(args))
        validate_setup(
            adata,
            **{name: args[name] for name in _CHECKED_KEYS},
            separator=args["perturbation_separator"],
            requires_counts=cls.requires_counts,
            requires_grn=cls.requires_grn,
            requires_features=cls.requires_features,
            allow_missing_features=cls.allow_missing_features,
            **{name: kwargs[name] for name in ("source_registry", "extend_categories") if name in kwargs},
        )
        fields = cls._get_fields(**args) + (extra_fields or [])
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def _refuse_unknown_keywords(cls, given: dict, known: list[str]) -> None:
        """Raise for a misspelt keyword of ``setup_anndata``; without this, scvi-tools fails inside of its manager."""
        unknown = [name for name in given if name not in _OF_SCVI]
        if unknown:
            raise TypeError(
                f"{cls.__name__}.setup_anndata has no argument {listed(unknown)}.{did_you_mean(unknown[0], known)} "
                f"Its arguments are {listed(known, len(known))}."
            )

    @classmethod
    def _get_fields(
        cls,
        perturbation_key: str,
        control_category: str | list[str],
        layer: str | None,
        dosage_key: str | None,
        perturbation_separator: str | None,
        batch_key: str | None,
        categorical_covariate_keys: list[str] | None,
        continuous_covariate_keys: list[str] | None,
        size_factor_key: str | None,
        grn_key: str | None,
        perturbation_features_key: str | None,
        extra_tokens: list[str] | None = None,
        **_: Any,
    ) -> list:
        labels = (perturbation_key, control_category, perturbation_separator)
        return [
            # first, because it checks the genes of a query before anything is written to it
            GRNField(grn_key, *labels, extra_tokens=extra_tokens),
            # whether X holds counts was checked chunk by chunk in validate_setup; scvi's own check would only warn
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),
            PerturbationField(perturbation_key, control_category, perturbation_separator, dosage_key),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
            FeaturesField(perturbation_features_key, *labels, allow_missing=cls.allow_missing_features),
        ]

    # ------------------------------------------------------------------ what was registered

    def _field_state(self, key: str) -> dict:
        """State registry of a field; works with and without an AnnData attached."""
        return self.registry_[FIELD_REGISTRIES_KEY][key][STATE_REGISTRY_KEY]

    def _setup_arg(self, name: str) -> Any:
        return self.registry_[SETUP_ARGS_KEY].get(name)

    def _get_vocabulary(self) -> Vocabulary:
        """Tokens of the data the model was set up with."""
        return self._vocabulary

    def _extra_tokens(self) -> tuple[str, ...]:
        """Tokens that were announced to ``setup_anndata`` and that no cell carries."""
        return tuple(str(token) for token in self._field_state(CAUSAL_KEYS.GRN).get("extra_tokens", ()))

    def _settable_covariates(self) -> dict[str, tuple]:
        """What a prediction may set like a covariate beside these: ``{column: (registry key, column of the tensor, categories)}``."""
        return {}

    def _var_names(self) -> np.ndarray:
        """(n_genes,) names of the genes, in the order of the model."""
        return np.asarray(self._field_state(REGISTRY_KEYS.X_KEY)["column_names"]).astype(str)

    def _prior_grn(self) -> pd.DataFrame:
        """Prior network as an edge list ``source, target, weight``; empty if there is none."""
        state = self._field_state(CAUSAL_KEYS.GRN)
        if not len(state.get("source_idx", ())):
            return pd.DataFrame({"source": [], "target": [], "weight": []}).astype(
                {"source": str, "target": str, "weight": float}
            )
        names = np.concatenate([np.asarray(state["var_names"]), np.asarray(state["extra_nodes"])]).astype(object)
        return pd.DataFrame(
            {
                "source": names[np.asarray(state["source_idx"])],
                "target": names[np.asarray(state["target_idx"])],
                "weight": np.asarray(state["weight"], dtype=float),
            }
        )

    def _has_features(self) -> bool:
        return len(self._field_state(CAUSAL_KEYS.FEATURES).get("feature_names", ())) > 0

    def _token_features(
        self, tokens: list[str], features: pd.DataFrame | None = None
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """Features of tokens, from the call first and from the registry second.

        Returns
        -------
        matrix
            (n_tokens, n_features) float32, zeros where there are none; ``None`` if nothing has features.
        known
            (n_tokens,) whether a token has features.
        """
        known = np.zeros(len(tokens), dtype=bool)
        if not self._has_features():
            if features is not None:
                raise ValueError(
                    f"This {type(self).__name__} was trained without features of perturbations, so features= says nothing "
                    f"to it. {HOW_FEATURES.format(name=type(self).__name__)}"
                )
            return None, known
        state = self._field_state(CAUSAL_KEYS.FEATURES)
        names = np.asarray(state["feature_names"]).astype(str)
        matrix = np.zeros((len(tokens), len(names)), dtype=np.float32)
        row_of = {str(token): i for i, token in enumerate(state["feature_tokens"])}
        for i, token in enumerate(tokens):
            if token in row_of:
                matrix[i], known[i] = state["feature_matrix"][row_of[token]], True
        if features is not None:
            given = _align_features(features, names)
            for i, token in enumerate(tokens):
                if token in given.index:
                    matrix[i], known[i] = given.loc[token].to_numpy(dtype=np.float32), True
        return matrix, known

    # ------------------------------------------------------------------ what was seen

    def _record_training(self) -> None:
        """Note which conditions the training cells had, so that predictions know what is unseen."""
        dosage = self._dosage(self.adata)[self.train_indices]
        used = np.unique(dosage.indices[dosage.data != 0])
        self.seen_tokens_ = np.asarray(self._vocabulary.tokens, dtype=str)[used]
        self.seen_conditions_ = np.unique(self._vocabulary.decode(dosage).astype(str))
        self.training_cells_ = _fingerprint(self.adata)

    def _dosage(self, adata: AnnData):
        """(n_cells, n_tokens) CSR dosage matrix of a registered AnnData; a NaN row has tokens the model does not know."""
        return self.get_from_registry(adata, CAUSAL_KEYS.PERTURBATION).tocsr()

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        """Register query data; all that can be wrong with them is found before anything is written to them."""
        if adata is not None and self.adata_manager is not None and not self._is_registered(adata):
            validate_query(adata, self.registry_, requires_counts=self._needs_counts())
        return super()._validate_anndata(adata, copy_if_view)

    def _needs_counts(self) -> bool:
        """Whether query data have to hold counts; a model that looks at its data overrides this."""
        return self.requires_counts

    def _is_registered(self, adata: AnnData) -> bool:
        """Whether this very object is registered; scvi-tools would register a copy as soon as it is asked for its manager."""
        managers = self._per_instance_manager_store.get(self.id, {})
        manager = managers.get(adata.uns.get(UUID_KEY))
        return manager is not None and manager.adata is adata

    def _is_training_data(self, adata: AnnData) -> bool:
        """Whether ``adata`` has the cells the model was trained on, also when it was read from disk again."""
        return self.training_cells_ is not None and self.training_cells_ == _fingerprint(adata)


def _fingerprint(adata: AnnData) -> str:
    """Hash of the names of the cells in their order."""
    names = "\n".join(adata.obs_names.astype(str))
    return hashlib.blake2b(names.encode(), digest_size=16).hexdigest()


def _align_features(features: pd.DataFrame, names: np.ndarray) -> pd.DataFrame:
    """Columns of ``features`` in the registered order; raises ``ValueError`` if they are not all there."""
    given = check_features(features, "features")
    missing = [name for name in names if name not in given.columns]
    if missing:
        raise ValueError(
            f"features lacks {len(missing)} of the {len(names)} registered columns: {listed(missing)}. "
            "New tokens are described by the columns that the model was trained with."
        )
    return given[list(names)]
