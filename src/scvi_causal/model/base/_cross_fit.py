"""Models that did not see the cells they predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from anndata import AnnData

    from ._model import CausalModel

_COLUMN = "_scvi_causal_fold"


def cross_fit_models(
    model: CausalModel,
    adata: AnnData,
    rows: np.ndarray,
    conditions: np.ndarray,
    n_folds: int,
    train_kwargs: dict[str, Any] | None,
    seed: int,
) -> tuple[list[CausalModel], np.ndarray]:
    """Models and which of them predicts each cell.

    Parameters
    ----------
    model
        The trained model; without folds it predicts all cells.
    adata, rows
        Cells to predict. Every fold gets its share of the cells of every condition.
    conditions
        (n_obs,) what the cells received.
    n_folds
        Number of models to train, 0 for none.
    train_kwargs
        Arguments of their training.
    seed
        Seed of the folds and of the training.

    Returns
    -------
    models
        One per fold, each trained as ``model`` was but without the cells of its fold.
    fold
        (n_obs,) fold of each cell.
    """
    fold = np.zeros(adata.n_obs, dtype=np.int64)
    if not n_folds:
        if train_kwargs:
            raise ValueError("train_kwargs are for the models of cross-fitting: pass cross_fit=2 or more as well.")
        return [model], fold
    if n_folds < 2 or n_folds != int(n_folds):
        raise ValueError(f"cross_fit={n_folds}: pass 0, or 2 or more folds.")
    if not model._is_training_data(adata):
        raise ValueError(
            "cross_fit trains models on parts of the training data, and these are other cells, which this "
            f"{type(model).__name__} never saw: cross_fit=0 is right for them."
        )
    rng = np.random.default_rng([seed, 4])
    shuffled = rng.permutation(rows)
    ordered = shuffled[np.argsort(conditions[shuffled].astype(str), kind="stable")]
    fold[ordered] = np.arange(len(ordered)) % n_folds
    split = np.full(adata.n_obs, "test", dtype=object)
    split[np.asarray(model.train_indices)] = "train"
    split[np.asarray(model.validation_indices, dtype=np.int64)] = "valid"
    models = []
    for i in range(n_folds):
        part = split.copy()
        part[rows[fold[rows] == i]] = "test"
        models.append(_fit(model, adata, part, train_kwargs or {}, seed + i))
    return models, fold


def _fit(model: CausalModel, adata: AnnData, split: np.ndarray, train_kwargs: dict[str, Any], seed: int) -> CausalModel:
    """A fresh model of the same class and options, trained on a split that is in ``adata.obs`` only meanwhile."""
    options = model.init_params_["non_kwargs"] | {
        name: value for group in model.init_params_["kwargs"].values() for name, value in group.items()
    }
    adata.obs[_COLUMN] = split
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = type(model)(adata, **options)
            fresh.train(**{**train_kwargs, "split_key": _COLUMN})
    finally:
        del adata.obs[_COLUMN]
    return fresh
