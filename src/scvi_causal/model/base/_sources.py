"""Where predictions start: which cell stands in for which, and how its tensors are read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings

from scvi_causal._constants import SOURCE_PREFIX
from scvi_causal.data._messages import did_you_mean, listed
from scvi_causal.dataloaders import CausalDataset, ControlPairing, get_control_mask, get_strata, stratum_label

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from ._model import CausalModel

MAX_SOURCES = 1_000
"""Control cells that a list of targets starts from, unless the user names others."""


@dataclass(frozen=True)
class Sources:
    """Source cells of a prediction.

    Parameters
    ----------
    adata
        AnnData that holds them: the one predicted on, or the training data where the former has no controls.
    rows
        (n,) rows of ``adata``.
    replaced
        (n,) whether the source is another cell than the one asked about.
    """

    adata: AnnData
    rows: np.ndarray
    replaced: np.ndarray


def control_pool(model: CausalModel, adata: AnnData) -> tuple[AnnData, np.ndarray]:
    """AnnData and rows of the control cells that predictions may start from.

    The training controls where ``adata`` is the training data, so that a held-out control stays unused; else the controls
    of the query; else the training controls of the model.
    """
    is_control = get_control_mask(model.get_anndata_manager(adata, required=True))
    if model._is_training_data(adata):
        rows = np.sort(np.asarray(model.train_indices))
        return adata, rows[is_control[rows]]
    if is_control.any():
        return adata, np.flatnonzero(is_control)
    attached = model.adata
    if attached is None or attached is adata or not model._is_training_data(attached):
        raise ValueError(
            f"None of the {adata.n_obs:,} cells of the query is a control, and the model was loaded without its training "
            f"data: there is no cell to start from. Add control cells (labelled {listed(model._vocabulary.control_categories)} "
            "or without the perturbation column), or load the model with its training data."
        )
    return control_pool(model, attached)


def match_sources(model: CausalModel, adata: AnnData, rows: np.ndarray, keep: np.ndarray, seed: int) -> Sources:
    """The cells themselves where ``keep``, and a control of the same stratum for the others.

    Parameters
    ----------
    model
        The model, for its strata and its training cells.
    adata
        AnnData of the cells asked about.
    rows
        (n,) rows of these cells.
    keep
        (n,) whether a cell starts from itself.
    seed
        Seed of the choice.
    """
    if keep.all():
        return Sources(adata, rows, np.zeros(len(rows), dtype=bool))
    pool_adata, pool = control_pool(model, adata)
    manager = model.get_anndata_manager(adata, required=True)
    pool_manager = model.get_anndata_manager(pool_adata, required=True)
    rng = np.random.default_rng([seed, 0])
    if pool_adata is adata:
        pairing = ControlPairing.from_manager(manager, pool)
        partners = pairing.draw(rows[~keep], rng)
        chosen = rows.copy()
        chosen[~keep] = partners
        return Sources(adata, chosen, ~keep)
    # No control in the query: every cell is replaced, so all sources are rows of the training data.
    pairing = ControlPairing(
        get_control_mask(pool_manager),
        [get_strata(pool_manager), get_strata(pool_manager, with_batch=False)],
        pool,
    )
    strata = [get_strata(manager)[rows], get_strata(manager, with_batch=False)[rows]]
    unmatched = ~np.isin(strata[0], pairing.strata[0][pool])
    if unmatched.any():
        warnings.warn(
            f"{int(unmatched.sum())} cells of the query are in strata without a training control, e.g. "
            f"{stratum_label(manager, int(rows[unmatched][0]))}. They start from controls of the same covariates in other "
            "batches, or else from any control.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return Sources(pool_adata, pairing.draw_for(strata, rng), np.ones(len(rows), dtype=bool))


class SourceReader:
    """Tensors of source cells, with covariates set as the user asked.

    Parameters
    ----------
    model
        The model the AnnData is registered with.
    adata
        AnnData of the source cells.
    covariates
        ``{column: value}`` to set; see :func:`covariate_overrides`.
    """

    def __init__(self, model: CausalModel, adata: AnnData, covariates: dict[str, Any] | None = None):
        self._dataset = CausalDataset(model.get_anndata_manager(adata, required=True))
        self._overrides = covariate_overrides(model, covariates)
        self._device = model.module.device

    def read(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Tensors of these rows, in their order, on the device of the model.

        Where covariates are set, what the cells have themselves is under ``"source_" + key``: a model that abducts needs both.
        """
        tensors = {key: torch.as_tensor(value).to(self._device) for key, value in self._dataset[rows].items()}
        for key, column, value in self._overrides:
            tensors.setdefault(SOURCE_PREFIX + key, tensors[key])
            tensors[key] = tensors[key].clone()
            tensors[key][:, column] = value
        return tensors


def covariate_overrides(model: CausalModel, covariates: dict[str, Any] | None) -> list[tuple[str, int, float]]:
    """Registry key, column and code of each covariate to set; raises ``ValueError`` for what is not registered."""
    if not covariates:
        return []
    categories, continuous = registered_covariates(model)
    known = [*categories, *continuous]
    unknown = [name for name in covariates if name not in known]
    if unknown:
        raise ValueError(
            f"covariates names {listed(unknown)}, which {'is' if len(unknown) == 1 else 'are'} not registered.{did_you_mean(unknown[0], known)} "
            f"Registered are {listed(known) or 'none'}: give batch_key, categorical_covariate_keys or "
            "continuous_covariate_keys to setup_anndata."
        )
    found = []
    for name, value in covariates.items():
        if np.ndim(value) != 0:
            raise ValueError(
                f"covariates[{name!r}] is a {type(value).__name__}: pass one value, which holds for all cells."
            )
        if name in continuous:
            key, column = continuous[name]
            found.append((key, column, float(value)))
            continue
        key, column, values = categories[name]
        names = [str(v) for v in values]
        if str(value) not in names:
            raise ValueError(
                f"covariates[{name!r}]={value!r} is not among the {len(names)} registered values: {listed(names, 20)}."
                f"{did_you_mean(str(value), names)}"
            )
        found.append((key, column, names.index(str(value))))
    return found


def registered_covariates(model: CausalModel) -> tuple[dict[str, tuple], dict[str, tuple]]:
    """Columns of ``adata.obs`` that are registered as covariates.

    Returns
    -------
    categorical
        ``{column: (registry key, column of the tensor, categories)}``, the batch included.
    continuous
        ``{column: (registry key, column of the tensor)}``.
    """
    categorical: dict[str, tuple] = {}
    continuous: dict[str, tuple] = {}
    if model._setup_arg("batch_key") is not None:
        state = model._field_state(REGISTRY_KEYS.BATCH_KEY)
        categorical[model._setup_arg("batch_key")] = (
            REGISTRY_KEYS.BATCH_KEY,
            0,
            np.asarray(state["categorical_mapping"]),
        )
    for i, name in enumerate(model._setup_arg("categorical_covariate_keys") or []):
        state = model._field_state(REGISTRY_KEYS.CAT_COVS_KEY)
        categorical[name] = (REGISTRY_KEYS.CAT_COVS_KEY, i, np.asarray(state["mappings"][name]))
    categorical |= model._settable_covariates()
    for i, name in enumerate(model._setup_arg("continuous_covariate_keys") or []):
        continuous[name] = (REGISTRY_KEYS.CONT_COVS_KEY, i)
    return categorical, continuous
