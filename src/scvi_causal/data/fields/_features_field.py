"""Feature vectors of the tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import rich.table
from scipy.sparse import issparse
from scvi.data.fields import BaseAnnDataField

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data._labels import as_control_categories
from scvi_causal.data._messages import did_you_mean, listed, plural, suggest
from scvi_causal.data._perturbations import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData


def check_features(features: object, where: str = "features") -> pd.DataFrame:
    """Features as float32 with string names, one row per token; raises ``ValueError`` for what is no such table."""
    if not isinstance(features, pd.DataFrame):
        raise ValueError(
            f"{where} is no pandas DataFrame but {type(features).__name__}: pass one with a row per token "
            "(index = names of the tokens) and a column per feature."
        )
    if not features.shape[0] or not features.shape[1]:
        raise ValueError(f"{where} has the shape {features.shape}: it needs a row per token and a column per feature.")
    text = [c for c in features.columns if not pd.api.types.is_numeric_dtype(features[c].dtype)]
    if text:
        raise ValueError(
            f"{where} has {plural(len(text), 'column')} without numbers: {listed(text)}. Leave them out, or encode them; the "
            "names of the tokens belong in the index."
        )
    names = pd.Index([str(t).strip() for t in features.index], dtype=object)
    doubled = names[names.duplicated()].unique()
    if len(doubled):
        raise ValueError(
            f"{where} has more than one row for {plural(len(doubled), 'token')}: {listed(doubled)}. Keep one of each."
        )
    values = features.to_numpy(dtype=np.float32, na_value=np.nan)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{where} has NaN or infinite values for {plural(int(bad.sum()), 'token')}: {listed(names[bad])}. "
            "Fill them in, or remove these rows."
        )
    return pd.DataFrame(values, index=names, columns=[str(c) for c in features.columns])


class FeaturesField(BaseAnnDataField):
    """Feature table of tokens in ``adata.uns`` or ``adata.varm`` to a matrix in the state registry.

    The whole table is kept with the model, so that tokens that no training cell carries can be predicted from it.

    Parameters
    ----------
    perturbation_features_key
        Key of ``adata.uns`` with a DataFrame (index = tokens), or of ``adata.varm`` with a matrix (a row per gene). ``None``
        leaves the field empty.
    perturbation_key
        Column of ``adata.obs`` with the labels, whose tokens all have to have features. ``None`` skips the check.
    control_category, separator
        How the labels are read; see :class:`PerturbationField`.
    allow_missing
        Accept tokens without features, for methods that have another way to encode them.

    Notes
    -----
    State: ``feature_tokens`` (n_rows,), ``feature_names`` (n_features,), ``feature_matrix`` (n_rows, n_features) float32.
    """

    TOKENS_KEY = "feature_tokens"
    NAMES_KEY = "feature_names"
    MATRIX_KEY = "feature_matrix"
    ORIGINAL_ATTR_KEY = "original_key"

    def __init__(
        self,
        perturbation_features_key: str | None,
        perturbation_key: str | None = None,
        control_category: str | Iterable[str] = "control",
        separator: str | None = "+",
        allow_missing: bool = False,
    ) -> None:
        super().__init__()
        self._key = perturbation_features_key
        self._perturbation_key = perturbation_key
        self._control_categories = as_control_categories(control_category)
        self._separator = separator
        self._allow_missing = allow_missing

    @property
    def registry_key(self) -> str:
        return CAUSAL_KEYS.FEATURES

    @property
    def attr_name(self) -> str:
        return "uns"

    @property
    def attr_key(self) -> str | None:
        return self._key

    @property
    def is_empty(self) -> bool:
        return self._key is None

    def get_data_registry(self) -> dict:
        """Nothing per cell: the loader would index whatever is named here by cell."""
        return {}

    def read(self, adata: AnnData) -> pd.DataFrame:
        """Checked feature table of the AnnData; raises ``ValueError`` if it is missing or malformed."""
        if self._key in adata.uns:
            return check_features(adata.uns[self._key], f"adata.uns[{self._key!r}]")
        if self._key in adata.varm:
            values = adata.varm[self._key]
            if not isinstance(values, pd.DataFrame):
                values = values.toarray() if issparse(values) else np.asarray(values)
                values = pd.DataFrame(values, index=adata.var_names)
            return check_features(values, f"adata.varm[{self._key!r}]")
        known = [*adata.uns.keys(), *adata.varm.keys()]
        raise ValueError(
            f"perturbation_features_key={self._key!r} is in neither adata.uns nor adata.varm, which have {listed(known)}."
            f"{did_you_mean(self._key, known)} Put a DataFrame there: a row per token, a column per feature."
        )

    def _check_tokens(self, adata: AnnData, features: pd.DataFrame) -> None:
        if self._allow_missing or self._perturbation_key is None:
            return
        tokens = Vocabulary.from_labels(
            adata.obs[self._perturbation_key], self._separator, self._control_categories
        ).tokens
        missing = [token for token in tokens if token not in features.index]
        if missing:
            near = [f"{m!r}: {listed(s)}" for m in missing[:5] if (s := suggest(m, features.index))]
            raise ValueError(
                f"{len(missing):,} of {len(tokens):,} tokens of adata.obs[{self._perturbation_key!r}] have no features under "
                f"{self._key!r}: {listed(missing)}."
                + (f" Look-alikes: {'; '.join(near)}." if near else "")
                + " Add a row for each, or remove the cells that carry them."
            )

    def validate_field(self, adata: AnnData) -> None:
        """Raise ``ValueError`` for a table that is missing, malformed or lacks tokens."""
        super().validate_field(adata)
        self._check_tokens(adata, self.read(adata))

    def register_field(self, adata: AnnData) -> dict:
        """Return names and values of the features."""
        features = self.read(adata)
        self._check_tokens(adata, features)
        return {
            self.TOKENS_KEY: features.index.to_numpy(dtype=object),
            self.NAMES_KEY: features.columns.to_numpy(dtype=object),
            self.MATRIX_KEY: np.ascontiguousarray(features.to_numpy(np.float32)),
            self.ORIGINAL_ATTR_KEY: self._key,
        }

    def transfer_field(self, state_registry: dict, adata_target: AnnData, **kwargs) -> dict:
        """Keep the features of the source; query data need none."""
        super().transfer_field(state_registry, adata_target, **kwargs)
        return dict(state_registry)

    def get_summary_stats(self, state_registry: dict) -> dict:
        """Number of features; 0 when there are none."""
        return {"n_perturbation_features": len(state_registry.get(self.NAMES_KEY, ()))}

    def view_state_registry(self, state_registry: dict) -> rich.table.Table | None:
        """Table with the size of the features; ``None`` when there are none."""
        if self.is_empty:
            return None
        t = rich.table.Table(title=f"{self.registry_key} State Registry")
        t.add_column("Key", justify="center", style="dodger_blue1", no_wrap=True, overflow="fold")
        t.add_column("Tokens", justify="center", style="green", no_wrap=True)
        t.add_column("Features", justify="center", style="green", no_wrap=True)
        n_tokens, n_features = state_registry[self.MATRIX_KEY].shape
        t.add_row(str(self._key), f"{n_tokens:,}", f"{n_features:,}")
        return t
