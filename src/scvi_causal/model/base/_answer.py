"""The answer to a counterfactual question, as layers or as a new AnnData, with its provenance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_causal._constants import CAUSAL_KEYS, UNS_KEY

from ._provenance import provenance, record
from ._sources import registered_covariates
from ._targets import dosage_text

if TYPE_CHECKING:
    from typing import Any

    from ._model import CausalModel
    from ._request import PredictOptions, Request


def check_key(key_added: str | None) -> None:
    """Raise ``ValueError`` for a name that cannot be stored."""
    if key_added is not None and (not isinstance(key_added, str) or not key_added or "/" in key_added):
        raise ValueError(f"key_added={key_added!r}: pass a name without '/', which h5ad would split, or None.")


def describe(
    model: CausalModel, request: Request, options: PredictOptions, covariates: dict[str, Any] | None
) -> dict[str, Any]:
    """Provenance of a prediction; nothing but strings, numbers and arrays of these."""
    sources = request.sources
    return provenance(
        model=type(model).__name__,
        mode=request.mode,
        target=np.unique(request.targets.labels.astype(str)),
        output=options.output,
        scale=model.module.scale,
        sample=options.sample,
        n_samples=options.n_samples,
        seed=options.seed,
        n_cells=len(request.cells),
        n_sources=len(np.unique(sources.rows)),
        n_sources_replaced=int(sources.replaced.sum()),
        sources_from="the data predicted on" if sources.adata is request.adata else "the training data",
        covariates=", ".join(f"{name}={value}" for name, value in (covariates or {}).items()),
        grn_fingerprint=str(model._field_state(CAUSAL_KEYS.GRN).get("fingerprint", "")),
        **model._provenance_extras(request.targets.tokens),
    )


def write_layers(request: Request, arrays: dict[str, np.ndarray], info: dict[str, Any], key: str) -> None:
    """Put the prediction beside the data it is about; a spread that an earlier prediction left there is removed."""
    adata = request.adata
    for name in ("_std", "_q05", "_q95"):
        if key + name in adata.layers and name not in arrays:
            del adata.layers[key + name]
    everything = len(request.cells) == adata.n_obs and (request.cells == np.arange(adata.n_obs)).all()
    for name, values in arrays.items():
        if not everything:
            layer = np.full(adata.shape, np.nan, dtype=np.float32)
            layer[request.cells] = values
            values = layer
        adata.layers[key + name] = values
    record(adata.uns, key, info)


def as_anndata(
    model: CausalModel,
    request: Request,
    arrays: dict[str, np.ndarray],
    info: dict[str, Any],
    key: str,
    covariates: dict[str, Any] | None,
) -> AnnData:
    """The prediction as a new AnnData, whose rows say which cell they start from and what they were asked to be."""
    obs = _obs(model, request, covariates)
    layers = {key + name: values for name, values in arrays.items() if name}
    return AnnData(X=arrays[""], obs=obs, var=request.adata.var.copy(), layers=layers, uns={UNS_KEY: {key: info}})


def _obs(model: CausalModel, request: Request, covariates: dict[str, Any] | None) -> pd.DataFrame:
    sources, labels = request.sources, request.targets.labels
    source = sources.adata.obs.iloc[sources.rows]
    seen = set(model.seen_conditions_.tolist()) | {model._get_vocabulary().control_categories[0]}
    names = request.adata.obs_names.to_numpy(dtype=object)[request.cells]
    if request.mode == "several targets":
        names = names + "|" + labels
    index = pd.Index(names.astype(str))
    if not index.is_unique:  # the same cell or target was asked for twice
        index = pd.Index([f"{name}|{i}" for i, name in enumerate(index)])
    obs = pd.DataFrame(index=index)
    obs[model._setup_arg("perturbation_key")] = pd.Categorical(labels.astype(str))
    obs["source_cell"] = source.index.to_numpy(dtype=object)
    obs["source_perturbation"] = pd.Categorical(model._source_labels(sources))
    obs["is_unseen"] = ~np.isin(labels.astype(str), list(seen))
    dosage_key = model._setup_arg("dosage_key") or "dosage"
    if (request.targets.dosage.data != 1).any() or model._setup_arg("dosage_key") is not None:
        obs[dosage_key] = dosage_text(request.targets.dosage, model._get_vocabulary().separator)
    categorical, continuous = registered_covariates(model)
    for name in [*categorical, *continuous, model._setup_arg("size_factor_key")]:
        if name is not None and name not in obs:
            obs[name] = source[name].to_numpy()
            if name in (covariates or {}):
                obs[name] = covariates[name]
    return obs
