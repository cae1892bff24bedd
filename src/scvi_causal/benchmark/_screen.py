"""The data of a benchmark, read and checked once: labels, contexts and expression on the scale of the scores."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvi_causal import metrics
from scvi_causal.data import canonical_labels, parse_label
from scvi_causal.data._holdout import read_columns
from scvi_causal.data._labels import as_control_categories, looks_like_control
from scvi_causal.data._messages import did_you_mean, listed
from scvi_causal.data._read import read_h5ad
from scvi_causal.data._scan import scan_matrix, why_unreadable
from scvi_causal.data._validate import check_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

DEFAULT_GRN_KEY = "grn"


@dataclass(eq=False)
class Screen:
    """A screen as all folds, models and scores see it; nothing in ``adata`` is ever changed.

    Attributes
    ----------
    adata
        The data as given.
    setup
        Arguments of ``setup_anndata`` that all models share.
    labels
        (cells,) canonical labels.
    contexts
        (cells,) values of the categorical covariates, joined by ``", "``; ``""`` without covariates.
    control
        The canonical control label.
    tokens
        Tokens of each label; empty for the control.
    x
        (cells, genes) log(1 + counts per 10,000 of the library), CSR where the data are sparse; the data themselves where
        they are no counts.
    is_counts
        Whether the data are counts.
    library
        (cells,) library of each cell: the size factor where one is named, else the sum of its counts. ``None`` for data
        that are no counts.
    """

    adata: AnnData
    setup: dict[str, Any]
    labels: np.ndarray
    contexts: np.ndarray
    control: str
    tokens: dict[str, tuple[str, ...]]
    x: Any
    is_counts: bool
    library: np.ndarray | None
    cache: dict = field(default_factory=dict, repr=False)
    """What jobs of the same fold share, kept for the last folds; never pickled."""

    @classmethod
    def build(
        cls,
        adata: AnnData | str | Path,
        *,
        perturbation_key: str = "perturbation",
        control_category: str | Sequence[str] = "control",
        perturbation_separator: str | None = "+",
        layer: str | None = None,
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        size_factor_key: str | None = None,
        grn_key: str | None = None,
        perturbation_features_key: str | None = None,
        covariate_key: str | None = None,
    ) -> Screen:
        """Read a screen.

        Parameters
        ----------
        adata
            AnnData, or the path of an ``.h5ad`` file.
        perturbation_key, control_category, perturbation_separator, layer, batch_key, categorical_covariate_keys
            As for ``setup_anndata``.
        size_factor_key, grn_key, perturbation_features_key
            As for ``setup_anndata``.
        covariate_key
            Column whose values are left out in turn; it becomes a categorical covariate if it is none.

        Raises
        ------
        ValueError
            If columns or control cells are missing, or values are missing or not finite.
        """
        adata = read_h5ad(adata) if isinstance(adata, str | Path) else adata
        if adata.isbacked:
            adata = adata.to_memory()
        check_names(adata)
        controls = as_control_categories(control_category)
        covariates = [categorical_covariate_keys] if isinstance(categorical_covariate_keys, str) else []
        covariates = covariates or list(categorical_covariate_keys or [])
        if covariate_key is not None and covariate_key not in covariates:
            covariates.append(covariate_key)
        setup = {
            "perturbation_key": perturbation_key,
            "control_category": list(controls),
            "perturbation_separator": perturbation_separator,
            "layer": layer,
            "batch_key": batch_key,
            "categorical_covariate_keys": covariates or None,
            "size_factor_key": size_factor_key,
            "grn_key": grn_key,
            "perturbation_features_key": perturbation_features_key,
        }
        given, *levels = read_columns(adata, [perturbation_key, *covariates])
        if batch_key is not None:
            read_columns(adata, batch_key)
        labels = canonical_labels(given, perturbation_separator, controls)
        tokens = {label: parse_label(label, perturbation_separator, controls) for label in np.unique(labels)}
        _check_labels(labels, tokens, controls[0], perturbation_key)
        x, library, is_counts = _expression(adata, layer, size_factor_key)
        contexts = np.full(adata.n_obs, "", dtype=object)
        for i, level in enumerate(levels):
            values = level.astype(str).to_numpy(object)
            contexts = contexts + ", " + values if i else values
        return cls(adata, setup, labels, contexts, controls[0], tokens, x, is_counts, library)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "cache": {}}

    @property
    def is_control(self) -> np.ndarray:
        """(cells,) mask."""
        return self.labels == self.control

    @property
    def perturbation_key(self) -> str:
        """Column of ``adata.obs`` with the labels."""
        return self.setup["perturbation_key"]

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Tokens of the screen, in alphabetical order: names that models may be asked for."""
        return tuple(sorted({token for tokens in self.tokens.values() for token in tokens}))

    @cached_property
    def cell_place(self) -> pd.Index:
        """Names of the cells, to look up their positions."""
        return pd.Index(self.adata.obs_names.astype(str))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that a result depends on in the data."""
        digest = hashlib.blake2b(digest_size=16)
        adata = self.adata
        for text in (adata.obs_names, adata.var_names, self.labels, self.contexts):
            digest.update("\n".join(map(str, text)).encode())
        for array in (*_buffers(self.x), self.library):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        for name, table in _tables(adata).items():
            digest.update(f"{name}|{list(table.columns)}".encode())
            digest.update(pd.util.hash_pandas_object(table.astype(str), index=True).to_numpy().tobytes())
        for name, matrix in _matrices(adata).items():
            digest.update(name.encode())
            for array in _buffers(matrix):
                digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr(sorted(self.setup.items())).encode())
        return digest.hexdigest()

    def restrict(self, cells: np.ndarray) -> Screen:
        """The screen of some of the cells alone, as if the others had never been: for splits within the training cells."""
        labels = self.labels[cells]
        tokens = {label: self.tokens[label] for label in np.unique(labels)}
        library = None if self.library is None else self.library[cells]
        return Screen(
            self.adata[cells],
            self.setup,
            labels,
            self.contexts[cells],
            self.control,
            tokens,
            self.x[cells],
            self.is_counts,
            library,
        )


def _check_labels(labels: np.ndarray, tokens: dict, control: str, perturbation_key: str) -> None:
    if control not in tokens:
        found = pd.Series(labels).value_counts()
        near = [label for label in tokens if looks_like_control(label)]
        hint = f"These look like it: {listed(near)}." if near else f"The labels with most cells: {listed(found.index)}."
        raise ValueError(
            f"No cell of obs[{perturbation_key!r}] has the control label {control!r}. {hint} Pass control_category."
        )
    if len(tokens) < 2:
        raise ValueError(
            f"All {len(labels):,} cells of obs[{perturbation_key!r}] are control cells: there is nothing to predict."
        )


def _expression(adata: AnnData, layer: str | None, size_factor_key: str | None) -> tuple[Any, np.ndarray | None, bool]:
    """Expression on the scale of the scores, libraries, and whether the data are counts."""
    if layer is not None and layer not in adata.layers:
        raise ValueError(
            f"layer={layer!r} is not in adata.layers, which has {listed(adata.layers) or 'none'}."
            f"{did_you_mean(layer, adata.layers)}"
        )
    raw = adata.X if layer is None else adata.layers[layer]
    place = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    problem = f"{place} is empty." if raw is None else why_unreadable(raw, place)
    if problem is not None:
        raise ValueError(problem)
    found = scan_matrix(raw, counts=True)
    if found.n_not_finite:
        raise ValueError(
            f"{place} has {found.n_not_finite:,} NaN or infinite values: fill them in, or remove these cells."
        )
    if found.n_negative or found.n_fractional:
        return raw if not sp.issparse(raw) else raw.tocsr(), None, False
    library = np.asarray(raw.sum(axis=1, dtype=np.float64)).ravel()
    if size_factor_key is not None:
        (column,) = read_columns(adata, size_factor_key)
        library = column.to_numpy(dtype=np.float64)
    return metrics.log1p_normalize(raw, library), library, True


def _buffers(x: Any) -> tuple[np.ndarray, ...]:
    return (x.data, x.indices, x.indptr) if sp.issparse(x) else (x,)


def _tables(adata: AnnData) -> dict[str, pd.DataFrame]:
    """Metadata of the cells, and all tables of ``uns``: a model may use any of them."""
    obs = adata.obs[[name for name in adata.obs if not str(name).startswith("_scvi")]]
    tables = {f"uns {key}": value for key, value in sorted(adata.uns.items()) if isinstance(value, pd.DataFrame)}
    return {"obs": obs, **tables}


def _matrices(adata: AnnData) -> dict[str, Any]:
    """What there is for genes and pairs of genes."""
    found = {f"varm {key}": value for key, value in sorted(adata.varm.items())}
    found |= {f"varp {key}": value for key, value in sorted(adata.varp.items())}
    return {
        key: value.tocsr() if sp.issparse(value) else np.asarray(value, dtype=np.float64)
        for key, value in found.items()
    }
