"""API side of the baselines: a closed-form fit behind the signature that all models share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS

from scvi_causal._docs import docs
from scvi_causal.data._scan import scan_matrix
from scvi_causal.model.base import CausalModel

from ._module import BaselineModule, Target
from ._table import effect_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import lightning.pytorch as pl
    from anndata import AnnData

logger = logging.getLogger(__name__)


class BaselineModel(CausalModel):
    """Base of the baselines: real control cells, shifted by a weighted sum of the effects of training conditions.

    Effects are differences of mean log(1 + counts per 10,000), taken within combinations of categorical covariates (batches
    apart) and used there; a condition that a covariate combination lacks has the mean of its effects in the others.

    Data that are no counts (negative or fractional values) are taken as they are, and so are the predictions.
    """

    unseen = ("any", "combinations")
    can_abduct = False

    def __init__(self, adata: AnnData | None = None, registry: dict | None = None):
        super().__init__(adata, registry)
        self.scale_: str = "log1p" if self.adata is None else self._read_scale()
        self.buffer_shapes_: dict[str, tuple] = {}
        self._build({})
        self.init_params_ = self._get_init_params(locals())

    def _build(self, module_kwargs: dict[str, Any]) -> None:
        """Make the empty module; what it holds is known after training, or when a saved model is loaded."""
        self.module: BaselineModule = self._module_cls(self.scale_, self._n_categories(), **module_kwargs)
        options = ", ".join(f"{name}={value!r}" for name, value in module_kwargs.items())
        self._model_summary_string = f"{type(self).__name__}({options}): closed form, scale {self.scale_}."

    def _n_categories(self) -> tuple[int, ...]:
        state = self._field_state(REGISTRY_KEYS.CAT_COVS_KEY)
        return tuple(int(n) for n in state.get("n_cats_per_key", ()))

    def _read_scale(self) -> str:
        x = self.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY)
        found = scan_matrix(x, counts=True)
        if found.n_negative or found.n_fractional:
            logger.info(
                "%d values are negative and %d fractional: these are no counts, so effects and predictions are on the scale "
                "of the data.",
                found.n_negative,
                found.n_fractional,
            )
            return "continuous"
        return "log1p"

    # ------------------------------------------------------------------ training

    @docs.dedent
    def train(
        self,
        max_epochs: int | None = None,
        split_key: str | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = None,
        early_stopping: bool = False,
        keep_best: bool | None = None,
        datasplitter_kwargs: dict | None = None,
        plan_config: Any = None,
        plan_kwargs: dict | None = None,
        datamodule: pl.LightningDataModule | None = None,
        trainer_config: Any = None,
        **trainer_kwargs,
    ) -> None:
        """Fit in closed form, from the training cells alone.

        Parameters
        ----------
        max_epochs
            Ignored, as is all else that tells how to iterate: the fit is one pass over the cells. The arguments are there so
            that a baseline can be trained by the code that trains a model.
        split_key
            Column of ``adata.obs`` with ``"train"``, ``"valid"`` or ``"test"`` for every cell. Without it 90%% of the cells of
            each condition train, as for all models.
        train_size, validation_size, shuffle_set_split, datasplitter_kwargs
            Of the random split; not used with ``split_key``.
        accelerator, devices, load_sparse_tensor, batch_size, early_stopping, keep_best
            Ignored, see ``max_epochs``.
        plan_config, plan_kwargs, trainer_config, **trainer_kwargs
            Ignored, see ``max_epochs``.
        datamodule
            Not supported: the fit needs the AnnData.

        Raises
        ------
        ValueError
            If no training cell is a control, or none is perturbed.
        """
        if self.adata is None or datamodule is not None:
            raise ValueError(
                f"{type(self).__name__} is fitted on an AnnData: build it with one, and pass no datamodule."
            )
        split = self._data_splitter_cls(
            self.adata_manager,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            split_key=split_key,
            **{k: v for k, v in (datasplitter_kwargs or {}).items() if k in ("external_indexing", "seed")},
        )
        rows = np.sort(np.asarray(split.train_idx))
        table = effect_table(self.adata_manager, rows, len(self._var_names()), self.module.scale)
        features, _ = self._token_features(list(self._vocabulary.tokens))
        self.buffer_shapes_ = self.module.fill(table, features, self._genes_of(self._vocabulary.tokens))
        self.module.eval()
        self.train_indices, self.validation_indices, self.test_indices = split.train_idx, split.val_idx, split.test_idx
        self.split_key_ = split_key
        self.is_trained_ = True
        self._record_training()
        self.history_ = {"train_loss": _history(self._training_error())}

    def _genes_of(self, tokens: Sequence[str]) -> np.ndarray:
        """(n_tokens,) position of the gene that each token names, -1 if it is not measured."""
        place = {gene: i for i, gene in enumerate(self._var_names())}
        return np.array([place.get(token, -1) for token in tokens], dtype=np.int64)

    def _training_error(self) -> float:
        """Mean squared error of the effects of the training conditions, over conditions, strata and genes."""
        inputs = {
            name: value.numpy() for name, value in self._get_token_inputs(list(self._vocabulary.tokens), None).items()
        }
        conditions = self.module._cache()["conditions"]
        strata, which = self.module.array("row_stratum"), self.module.array("row_condition")
        errors = np.empty(len(which))
        for i, (condition, stratum) in enumerate(zip(which, strata, strict=True)):
            a, b = conditions.indptr[condition : condition + 2]
            tokens = conditions.indices[a:b]
            target = Target(tokens, conditions.data[a:b], {k: v[tokens] for k, v in inputs.items() if k != "index"})
            predicted = self.module.effect_of([target], np.array([stratum]))[0]
            errors[i] = float((predicted - self.module.effect[i]).square().mean())
        return float(errors.mean())

    # ------------------------------------------------------------------ prediction

    def _perturbation_vectors(
        self, labels: np.ndarray, features: pd.DataFrame | None
    ) -> tuple[np.ndarray, Sequence[str]]:
        """Effects, averaged over strata."""
        tokens = sorted({token for label in labels for token in self._vocabulary.parse(label)})
        column = {token: i for i, token in enumerate(tokens)}
        inputs = {name: value.numpy() for name, value in self._get_token_inputs(tokens, features).items()}
        targets = []
        for label in labels:
            used = np.array([column[token] for token in self._vocabulary.parse(label)], dtype=np.int64)
            others = {name: value[used] for name, value in inputs.items() if name != "index"}
            targets.append(Target(inputs["index"][used], np.ones(len(used)), others))
        anywhere = np.full(len(targets), len(self.module.array("strata")))
        return self.module.effect_of(targets, anywhere).cpu().numpy(), self._var_names()


def _history(error: float) -> pd.DataFrame:
    return pd.DataFrame({"train_loss": [error]}, index=pd.Index([0], name="epoch"))
