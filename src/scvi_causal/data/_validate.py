"""Checks of an AnnData before anything is written to it: each failure says what, how often, and what to do."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from scvi import REGISTRY_KEYS, settings

from scvi_causal._compat import FIELD_REGISTRIES_KEY, SETUP_ARGS_KEY, STATE_REGISTRY_KEY
from scvi_causal._constants import CAUSAL_KEYS

from ._labels import as_control_categories, looks_like_control, looks_unassigned
from ._messages import did_you_mean, listed, plural
from ._perturbations import Vocabulary
from ._scan import MatrixScan, scan_matrix, why_unreadable
from .fields import FeaturesField, GRNField, PerturbationField, check_genes

if TYPE_CHECKING:
    from collections.abc import Sequence


def validate_setup(
    adata: AnnData,
    perturbation_key: str = "perturbation",
    control_category: str | list[str] = "control",
    layer: str | None = None,
    dosage_key: str | None = None,
    *,
    separator: str | None = "+",
    batch_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    continuous_covariate_keys: Sequence[str] | None = None,
    size_factor_key: str | None = None,
    grn_key: str | None = None,
    perturbation_features_key: str | None = None,
    extra_tokens: Sequence[str] | None = None,
    requires_counts: bool = False,
    requires_grn: bool = False,
    requires_features: bool = False,
    allow_missing_features: bool = False,
    source_registry: dict | None = None,
    extend_categories: bool = False,
) -> None:
    """Check everything that ``setup_anndata`` needs; ``adata`` is only read.

    Parameters
    ----------
    adata
        Data to set up.
    perturbation_key, control_category, layer, dosage_key, separator, batch_key, categorical_covariate_keys
        As in ``setup_anndata`` (where the separator is ``perturbation_separator``).
    continuous_covariate_keys, size_factor_key, grn_key, perturbation_features_key, extra_tokens
        As in ``setup_anndata``.
    requires_counts
        The model needs raw counts: negative or fractional values and cells without a count are errors.
    requires_grn, requires_features
        The model needs a prior GRN, or features of the tokens.
    allow_missing_features
        Tokens without features are no error, because the model has another way to encode them.
    source_registry
        Registry of a model, when ``adata`` is its query: the genes have to be those of the model in the same order and the
        categories known, while perturbations, controls, graph and features may be absent.
    extend_categories
        Whether new categories are welcome in the query.

    Raises
    ------
    ValueError
        If anything does not fit.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from scvi_causal.data import validate_setup
    >>> obs = pd.DataFrame({"perturbation": ["ctrl", "A"]}, index=["c1", "c2"])
    >>> validate_setup(ad.AnnData(np.ones((2, 3), dtype="float32"), obs=obs))
    Traceback (most recent call last):
    ValueError: No cell of adata.obs['perturbation'] has the control label 'control' ... pass control_category='ctrl'.
    """
    is_query = source_registry is not None
    _check_size(adata, is_query)
    if is_query:
        check_genes(adata.var_names, _state(source_registry, CAUSAL_KEYS.GRN)["var_names"])
    check_names(adata)
    _check_perturbations(adata, perturbation_key, control_category, dosage_key, separator, is_query)
    categorical = _as_keys("categorical_covariate_keys", categorical_covariate_keys)
    _check_categorical(adata, "batch_key", [batch_key] if batch_key else [])
    _check_categorical(adata, "categorical_covariate_keys", categorical)
    if is_query and not extend_categories:
        _check_known_categories(adata, source_registry, batch_key)
    for key in _as_keys("continuous_covariate_keys", continuous_covariate_keys):
        _check_numbers(adata, "continuous_covariate_keys", key)
    if size_factor_key:
        _check_numbers(adata, "size_factor_key", size_factor_key, positive=True)
    if not is_query:
        how = {"perturbation_key": perturbation_key, "control_category": control_category, "separator": separator}
        _check_graph(adata, GRNField(grn_key, **how, extra_tokens=extra_tokens), requires_grn)
        features = FeaturesField(perturbation_features_key, **how, allow_missing=allow_missing_features)
        _check_features(adata, features, requires_features)
    _check_expression(adata, layer, requires_counts)


def validate_query(
    adata: AnnData, registry: dict, requires_counts: bool = False, extend_categories: bool = False
) -> None:
    """Check query data against the registry of a model; ``adata`` is only read.

    Parameters
    ----------
    adata
        Query data.
    registry
        ``model.registry_``, or that of its manager.
    requires_counts, extend_categories
        See :func:`validate_setup`.

    Raises
    ------
    ValueError
        If anything does not fit.
    """
    names = (
        "perturbation_key control_category layer dosage_key batch_key categorical_covariate_keys continuous_covariate_keys "
        "size_factor_key"
    ).split()
    given = registry[SETUP_ARGS_KEY]
    validate_setup(
        adata,
        **{name: given[name] for name in names if name in given},
        separator=given.get("perturbation_separator", "+"),
        requires_counts=requires_counts,
        source_registry=registry,
        extend_categories=extend_categories,
    )


def _state(registry: dict, key: str) -> dict:
    return registry[FIELD_REGISTRIES_KEY].get(key, {}).get(STATE_REGISTRY_KEY, {})


def _check_size(adata: AnnData, is_query: bool) -> None:
    if not isinstance(adata, AnnData):
        raise ValueError(
            f"Expected an AnnData, got {type(adata).__name__}; from a MuData, pass one modality: mdata['rna']."
        )
    if adata.n_obs == 0:
        raise ValueError(f"The {'query ' if is_query else ''}AnnData has no cells: check the filter that made it.")
    if adata.n_vars == 0:
        raise ValueError("The AnnData has no genes: check the filter that made it.")


def check_names(adata: AnnData) -> None:
    """Raise ``ValueError`` if two genes, or two cells, have the same name."""
    for names, what, fix in (
        (adata.var_names, "gene", "adata.var_names_make_unique()"),
        (adata.obs_names, "cell", "adata.obs_names_make_unique()"),
    ):
        if not names.is_unique:
            doubled = names[names.duplicated()].unique()
            raise ValueError(
                f"There {'is' if len(doubled) == 1 else 'are'} {plural(len(doubled), f'{what} name')} used more than once: "
                f"{listed(doubled)}. Make them unique: {fix}."
            )


def _column(adata: AnnData, argument: str, key: str) -> pd.Series:
    if key not in adata.obs:
        raise ValueError(
            f"{argument}={key!r} is not a column of adata.obs; it has {listed(adata.obs.columns, 20)}."
            f"{did_you_mean(key, adata.obs.columns)}"
        )
    return adata.obs[key]


def _check_perturbations(adata, perturbation_key, control_category, dosage_key, separator, is_query: bool) -> None:
    controls = as_control_categories(control_category)
    if is_query and perturbation_key not in adata.obs:
        return
    labels = _column(adata, "perturbation_key", perturbation_key)
    dosages = None if dosage_key is None else _column(adata, "dosage_key", dosage_key)
    if is_query:
        Vocabulary.from_labels(labels, separator, controls).encode(labels, dosages)
        return
    vocabulary = PerturbationField(perturbation_key, controls, separator, dosage_key).check(adata)
    _warn_about_tokens(vocabulary)


def _warn_about_tokens(vocabulary: Vocabulary) -> None:
    """Hint at tokens that are hardly perturbations; they stay perturbations all the same."""
    controls = [t for t in vocabulary.tokens if looks_like_control(t)]
    unassigned = [t for t in vocabulary.tokens if looks_unassigned(t)]
    cut = [t for t in vocabulary.tokens if t.count("(") != t.count(")") or t.count("[") != t.count("]")]
    for tokens, meaning, fix in (
        (controls, "Treated as perturbations, but with the names of controls", "add them to control_category"),
        (
            unassigned,
            "Treated as perturbations, but with the names of cells that nothing was assigned to",
            "remove these cells",
        ),
        (
            cut,
            f"Unmatched brackets, as if {vocabulary.separator!r} were part of a name",
            "choose another separator",
        ),
    ):
        if tokens:
            warnings.warn(
                f"{meaning} ({plural(len(tokens), 'token')}): {listed(tokens)}. If so, {fix}.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )


def _as_keys(argument: str, keys: Sequence[str] | None) -> Sequence[str]:
    if isinstance(keys, str):
        raise ValueError(f"{argument}={keys!r} is a string: pass a list, [{keys!r}].")
    return keys or []


def _check_categorical(adata: AnnData, argument: str, keys: Sequence[str]) -> None:
    for key in keys:
        absent = _column(adata, argument, key).isna()
        if absent.any():
            raise ValueError(
                f"adata.obs[{key!r}] has no value (NaN) in {plural(int(absent.sum()), 'cell')} of {adata.n_obs:,}, first "
                f"{listed(adata.obs_names[absent.to_numpy()], 3)}. Fill them in, or remove these cells: "
                f"adata = adata[adata.obs[{key!r}].notna()].copy()."
            )


def _check_known_categories(adata: AnnData, registry: dict, batch_key: str | None) -> None:
    known = dict(_state(registry, REGISTRY_KEYS.CAT_COVS_KEY).get("mappings", {}))
    if batch_key:
        known[batch_key] = _state(registry, REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"]
    for key, categories in known.items():
        new = adata.obs[key][~adata.obs[key].isin(list(categories))]
        if len(new):
            raise ValueError(
                f"adata.obs[{key!r}] has {plural(new.nunique(), 'value')} that the model does not know, in {plural(len(new), 'cell')}: "
                f"{listed(new.unique())}. It knows {listed(categories)}. Map them to known ones, or leave these "
                "cells out."
            )


def _check_numbers(adata: AnnData, argument: str, key: str, positive: bool = False) -> None:
    column = _column(adata, argument, key)
    if not pd.api.types.is_numeric_dtype(column.dtype):
        raise ValueError(f"{argument}={key!r} names a column of type {column.dtype}: it has to hold numbers.")
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = ~np.isfinite(values) | ((values <= 0) if positive else False)
    if bad.any():
        raise ValueError(
            f"adata.obs[{key!r}] is not {'a positive number' if positive else 'finite'} in {plural(int(bad.sum()), 'cell')} of "
            f"{adata.n_obs:,}: found {listed(np.unique(values[bad]), 5)}, first in cell "
            f"{adata.obs_names[bad][0]!r}. Correct the values, or remove these cells."
        )


def _check_graph(adata: AnnData, field: GRNField, required: bool) -> None:
    if required and field.read(adata) is None:
        raise ValueError(
            "The model needs a prior gene regulatory network: put a DataFrame with the columns source, target and, "
            "optionally, weight into adata.uns['grn'], or name its place with grn_key."
        )
    field.validate_field(adata)


def _check_features(adata: AnnData, field: FeaturesField, required: bool) -> None:
    if not field.is_empty:
        field.validate_field(adata)
    elif required:
        raise ValueError(
            "The model needs features of the perturbations: put a DataFrame (a row per token, a column per feature) into "
            "adata.uns and name its place with perturbation_features_key."
        )


def _check_expression(adata: AnnData, layer: str | None, counts: bool) -> None:
    if layer is not None and layer not in adata.layers:
        layers = [name for name in adata.layers.keys() if name is not None]
        raise ValueError(
            f"layer={layer!r} is not in adata.layers, which has {listed(layers) or 'none'}.{did_you_mean(layer, layers)}"
        )
    place = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    x = adata.X if layer is None else adata.layers[layer]
    if x is None:
        raise ValueError(f"adata.X is empty; name the layer to use, one of {listed(adata.layers.keys()) or 'none'}.")
    problem = why_unreadable(x, place)
    if problem is not None:
        raise ValueError(problem)
    problem = _what_is_wrong(scan_matrix(x, counts=counts), adata, place)
    if problem is not None:
        raise ValueError(problem)


def _what_is_wrong(scan: MatrixScan, adata: AnnData, place: str) -> str | None:
    def examples(kind: str) -> str:
        return ", ".join(
            f"{value:g} in cell {adata.obs_names[row]!r}, gene {adata.var_names[column]!r}"
            for row, column, value in scan.examples[kind]
        )

    layers = listed(name for name in adata.layers.keys() if name is not None)
    elsewhere = f" The layers are {layers}." if layers else ""
    if scan.n_not_finite:
        return (
            f"{place} has {plural(scan.n_not_finite, 'NaN or infinite value')}: {examples('not_finite')}. "
            f"Set missing values to 0 if they mean that nothing was seen, or remove these cells or genes.{elsewhere}"
        )
    for kind, n in (("negative", scan.n_negative), ("fractional", scan.n_fractional)):
        if n:
            return (
                f"{place} has {plural(n, f'{kind} value')}, and the model needs raw counts: {examples(kind)}. "
                f"Pass the layer that holds the counts as layer=.{elsewhere}"
            )
    if len(scan.empty_cells):
        return (
            f"{place} has {plural(len(scan.empty_cells), 'cell')} of {scan.n_cells:,} without a single count: "
            f"{listed(adata.obs_names[scan.empty_cells])}. Remove them: scanpy.pp.filter_cells(adata, min_counts=1)."
        )
    return None
