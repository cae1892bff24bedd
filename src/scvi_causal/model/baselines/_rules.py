"""The five rules by which the baselines weigh the training conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import diags

from scvi_causal.model.base._token_contrasts import FEWEST_CELLS

from ._module import BaselineModule, Target, Weights
from ._weights import (
    bilinear_solution,
    choose_alpha,
    interpolate_dosage,
    nearest_weights,
    ridge_solution,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ._table import EffectTable


class ControlMeanModule(BaselineModule):
    """No effect."""

    def weights(self, target: Target) -> Weights:
        """Zero."""
        return Weights(np.zeros(self._n_conditions()))


class PerturbedMeanModule(BaselineModule):
    """The same effect for every target: the mean over the training perturbations."""

    def weights(self, target: Target) -> Weights:
        """One share each."""
        n = self._n_conditions()
        return Weights(np.full(n, 1.0 / n))


class AdditiveModule(BaselineModule):
    """A training condition has its own effect, if cells enough tell it; everything else is the sum of the effects of its tokens."""

    def fit(
        self, table: EffectTable, token_features: np.ndarray | None, gene_of_token: np.ndarray
    ) -> dict[str, Tensor]:
        """How many cells each condition has."""
        cells = np.bincount(table.row_condition, table.row_cells)
        return {"condition_cells": torch.from_numpy(cells.astype(np.float32))}

    def weights(self, target: Target) -> Weights:
        """One-hot for a condition that was trained on, otherwise the sum over tokens."""
        conditions, cells = self._cache()["conditions"], self.array("condition_cells")
        exact = self._find(target)
        weights = np.zeros(self._n_conditions())
        if exact is not None and cells[exact] >= FEWEST_CELLS:
            weights[exact] = 1.0
            return Weights(weights)
        single = np.flatnonzero(np.diff(conditions.indptr) == 1)
        token_of = conditions.indices[conditions.indptr[single]]
        dosage_of = conditions.data[conditions.indptr[single]]
        for token, dosage in zip(target.index, target.dosage, strict=True):
            alike = single[token_of == token] if token >= 0 else single[:0]
            if cells[alike].sum() < FEWEST_CELLS and self._in_combinations(token):
                weights += dosage * self._least_squares(token)
            elif len(alike):
                weights[alike] += interpolate_dosage(dosage, dosage_of[token_of == token])
            else:  # nothing is known about this token: the mean of the single perturbations
                pool = single if len(single) else np.arange(len(weights))
                weights[pool] += 1.0 / len(pool)
        return Weights(weights)

    def _in_combinations(self, token: int) -> bool:
        """Whether cells of combinations have the token."""
        cache = self._cache()
        if "in_combinations" not in cache:
            conditions = cache["conditions"]
            cache["in_combinations"] = np.unique(conditions[np.diff(conditions.indptr) > 1].indices)
        return token in cache["in_combinations"]

    def _least_squares(self, token: int) -> np.ndarray:
        """(n_conditions,) weights of the conditions in the effect of a token, all conditions being sums over tokens."""
        cache = self._cache()
        if "gram" not in cache:
            weighted = diags(self.array("condition_cells")) @ cache["conditions"]
            gram = (cache["conditions"].T @ weighted).toarray()
            cache["weighted"] = weighted.tocsr()
            # tokens that no condition tells apart share their effect
            cache["gram"] = np.linalg.inv(gram + 1e-6 * gram.max() * np.eye(len(gram)))
        return cache["weighted"] @ cache["gram"][:, token]

    def _find(self, target: Target) -> int | None:
        """The training condition with exactly these tokens and dosages."""
        if (target.index < 0).any():
            return None
        known = self._cache().setdefault("lookup", {})
        if not known:
            conditions = self._cache()["conditions"]
            for i, (a, b) in enumerate(zip(conditions.indptr[:-1], conditions.indptr[1:], strict=True)):
                known[_key(conditions.indices[a:b], conditions.data[a:b])] = i
        return known.get(_key(target.index, target.dosage))


class LinearEffectModule(BaselineModule):
    """Ridge regression from the features of a target to its effect."""

    def __init__(self, *args, alpha: float | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.alpha = alpha

    def fit(
        self, table: EffectTable, token_features: np.ndarray | None, gene_of_token: np.ndarray
    ) -> dict[str, Tensor]:
        """Solve for the weights once."""
        design = table.conditions @ token_features.astype(np.float64)
        alpha = choose_alpha(design, mean_effects(table)) if self.alpha is None else self.alpha
        return {
            "solution": torch.from_numpy(ridge_solution(design, alpha).astype(np.float32)),
            "center": torch.from_numpy(design.mean(0).astype(np.float32)),
            "penalty": torch.tensor(alpha, dtype=torch.float32),
        }

    def weights(self, target: Target) -> Weights:
        """``1/n + (x - mean) S`` with the features ``x`` of the target: the sum over its tokens, times their dosages."""
        x = target.dosage @ target.inputs["features"].astype(np.float64)
        return Weights(1.0 / self._n_conditions() + (x - self.array("center")) @ self.array("solution"))


class BilinearEffectModule(BaselineModule):
    """Ridge regression between gene factors of the training data; the perturbed genes are described by their own factors."""

    def __init__(self, *args, alpha: float = 0.1, n_factors: int = 10, **kwargs):
        super().__init__(*args, **kwargs)
        self.alpha, self.n_factors = alpha, n_factors

    def fit(
        self, table: EffectTable, token_features: np.ndarray | None, gene_of_token: np.ndarray
    ) -> dict[str, Tensor]:
        """Factor the training pseudobulks and solve for the weights once."""
        conditions = table.conditions
        rows, doses = [], []
        for a, b in zip(conditions.indptr[:-1], conditions.indptr[1:], strict=True):
            genes = gene_of_token[conditions.indices[a:b]]
            rows.append(genes[genes >= 0])
            doses.append(conditions.data[a:b][genes >= 0].astype(np.float64))
        control = table.control_mean[-1].astype(np.float64)
        found = bilinear_solution(mean_effects(table), control, rows, doses, self.n_factors, self.alpha)
        return {name: torch.from_numpy(value.astype(np.float32)) for name, value in found.items()}

    def weights(self, target: Target) -> Weights:
        """The mean effect, counting control, and what the factors of the perturbed genes add to it."""
        genes = target.inputs["gene"]
        measured = genes >= 0
        b = target.dosage[measured] @ self.array("scores")[genes[measured]]
        weights = self.array("solution") @ b
        n = self._n_conditions() + 1
        return Weights(np.full(n - 1, 1.0 / n), weights - weights.sum() / n)

    def _project(self, effect: Tensor) -> Tensor:
        return self.scores @ (self.project @ effect)


class NearestPerturbationModule(BaselineModule):
    """The mean effect of the training perturbations with the most similar features."""

    def __init__(self, *args, n_neighbors: int = 5, metric: str = "euclidean", **kwargs):
        super().__init__(*args, **kwargs)
        self.n_neighbors, self.metric = n_neighbors, metric

    def fit(
        self, table: EffectTable, token_features: np.ndarray | None, gene_of_token: np.ndarray
    ) -> dict[str, Tensor]:
        """Keep the features of the single perturbations (of all conditions if there is no single one)."""
        conditions = table.conditions
        single = np.flatnonzero(np.diff(conditions.indptr) == 1)
        if not len(single):
            single = np.arange(conditions.shape[0])
        features = token_features.astype(np.float64)
        lengths = np.diff(conditions.indptr)[single]
        # features of the tokens themselves; their dosage scales the effect instead
        unit = conditions[single].copy()
        unit.data = np.ones_like(unit.data)
        dosage = np.where(lengths == 1, conditions.data[conditions.indptr[single]], 1.0)
        return {
            "design": torch.from_numpy((unit @ features).astype(np.float32)),
            "neighbor": torch.from_numpy(single.astype(np.int64)),
            "neighbor_dosage": torch.from_numpy(dosage.astype(np.float32)),
        }

    def weights(self, target: Target) -> Weights:
        """Sum over tokens; an effect is scaled by the ratio of the dosages, and never beyond what was measured."""
        weights = np.zeros(self._n_conditions())
        for dosage, x in zip(target.dosage, target.inputs["features"].astype(np.float64), strict=True):
            share = nearest_weights(x, self.array("design"), self.n_neighbors, self.metric)
            ratio = np.clip(dosage / self.array("neighbor_dosage"), -1.0, 1.0)
            np.add.at(weights, self.array("neighbor"), share * ratio)
        return Weights(weights)


def mean_effects(table: EffectTable) -> np.ndarray:
    """(n_conditions, n_genes) effect of each condition, averaged over the strata that have it."""
    total = np.zeros((table.conditions.shape[0], table.effect.shape[1]))
    np.add.at(total, table.row_condition, table.effect)
    return total / np.bincount(table.row_condition)[:, None]


def _key(tokens: np.ndarray, dosage: np.ndarray) -> tuple:
    order = np.argsort(tokens)
    return tuple(np.asarray(tokens)[order].tolist()), tuple(np.float32(dosage)[order].tolist())
