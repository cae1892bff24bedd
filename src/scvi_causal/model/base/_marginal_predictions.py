"""What a model predicts for every cell under every target, in the two forms that estimators of average effects take."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS, settings

from scvi_causal.data._messages import plural
from scvi_causal.dataloaders import get_strata, stratum_label
from scvi_causal.effects import StratumPredictions

from ._request import PredictOptions, Sources, _refuse_unknown_sources
from ._scales import to_log1p, to_normalized
from ._sources import SourceReader, control_pool
from ._walk import Tokens, evaluate, library_of, step_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pandas as pd
    from anndata import AnnData
    from torch import Tensor

    from ._conditions import Conditions
    from ._model import CausalModel

_CELL_DRAWS = 10
_STRATUM_SOURCES = 500  # controls that stand for a stratum: their noise only enters times the imbalance of strata


@dataclass(frozen=True)
class PredictionPlan:
    """What to predict; see :meth:`CausalModel.get_marginal_effects`."""

    asked: Conditions
    features: pd.DataFrame | None
    scale: str
    n_samples: int | None
    batch_size: int | None
    seed: int


class _Predictor:
    """Expected expression of source cells of one AnnData, under one condition after the other."""

    def __init__(self, model: CausalModel, adata: AnnData, plan: PredictionPlan, n_samples: int):
        model.module.eval()
        model._refuse_unpredictable(plan.asked.labels, plan.features)
        self._model, self._plan = model, plan
        self._reader = SourceReader(model, adata)
        self._tokens = Tokens(model, plan.asked.tokens, plan.features)
        # between scales that are not multiples of one another a mean has to be taken over draws
        self._drawn = model.module.scale != "continuous" and (model.module.scale == "counts") == (plan.scale == "log1p")
        self._n_samples = (plan.n_samples or n_samples) if self._drawn else 1
        self.step = plan.batch_size or step_size(1, len(model._var_names()))

    def read(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self._reader.read(rows)

    @torch.inference_mode()
    def __call__(self, tensors: dict[str, Tensor], key: str, seed: list[int]) -> Tensor:
        """(cells, genes) mean of the draws; the same random numbers whatever the condition."""
        model, n = self._model, len(tensors[REGISTRY_KEYS.X_KEY])
        options = PredictOptions("log1p", self._drawn, 1, self._plan.seed)
        state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        generator = torch.Generator(model.module.device).manual_seed(int(state >> np.uint64(1)))
        dosages, inputs = self._tokens.take(self._plan.asked.row(key))
        library, total = library_of(model, tensors), 0.0
        for _ in range(self._n_samples):
            x = evaluate(model, tensors, dosages[0].expand(n, -1), inputs, options, generator)
            if self._plan.scale == "log1p":
                x = to_log1p(x, model.module.scale, library)
            elif self._plan.scale == "normalized":
                x = to_normalized(x, model.module.scale, library)
            total = total + x
        return total / self._n_samples


def predict_from_cells(
    models: list[CausalModel], fold: np.ndarray, adata: AnnData, rows: np.ndarray, plan: PredictionPlan
) -> Callable[[np.ndarray, list[str]], Iterator[np.ndarray]]:
    """Predictions that start from each cell itself, by the model that did not see it.

    Parameters
    ----------
    models, fold
        Models, and (n_obs,) which of them predicts a cell.
    adata, rows
        Cells to predict.
    plan
        What to predict.
    """
    for model in models:
        _refuse_unknown_sources(model, Sources(adata, rows, np.zeros(len(rows), dtype=bool)))
    predictors = [_Predictor(model, adata, plan, _CELL_DRAWS) for model in models]
    n_genes = len(models[0]._var_names())

    def predict(part: np.ndarray, keys: list[str]) -> Iterator[np.ndarray]:
        batches = []
        for i, predictor in enumerate(predictors):
            places = np.flatnonzero(fold[part] == i)
            for start in range(0, len(places), predictor.step):
                some = places[start : start + predictor.step]
                batches.append((predictor, some, predictor.read(part[some])))
        for key in keys:
            out = np.empty((len(part), n_genes), dtype=np.float32)
            for predictor, some, tensors in batches:
                out[some] = predictor(tensors, key, [plan.seed, 2, int(part[some[0]])]).cpu().numpy()
            yield out

    return predict


def predict_from_strata(
    models: list[CausalModel], fold: np.ndarray, adata: AnnData, rows: np.ndarray, plan: PredictionPlan
) -> StratumPredictions:
    """Means of predictions over the training controls of each stratum (batch and categorical covariates).

    What a model says of cells like these before anything was done to them. Parameters as of :func:`predict_from_cells`.
    """
    manager = models[0].get_anndata_manager(adata, required=True)
    levels = [get_strata(manager), get_strata(manager, with_batch=False)]
    code = np.zeros(adata.n_obs, dtype=np.int64)
    _, first, code[rows] = np.unique(
        np.column_stack([fold[rows], levels[0][rows]]), axis=0, return_index=True, return_inverse=True
    )
    cells = rows[first]  # one of each stratum
    n_genes = len(models[0]._var_names())
    means = {key: np.empty((len(cells), n_genes), dtype=np.float32) for key in plan.asked.keys}
    without = []
    for i, model in enumerate(models):
        pool_adata, pool = control_pool(model, adata)
        pool_manager = model.get_anndata_manager(pool_adata, required=True)
        of_pool = [get_strata(pool_manager)[pool], get_strata(pool_manager, with_batch=False)[pool]]
        predictor = _Predictor(model, pool_adata, plan, 1)
        for s in np.flatnonzero(fold[cells] == i):
            sources, matched = _sources(pool, of_pool, [level[cells[s]] for level in levels], plan.seed)
            if not matched:
                without.append(cells[s])
            total = np.zeros((len(means), n_genes))
            for start in range(0, len(sources), predictor.step):
                tensors = predictor.read(sources[start : start + predictor.step])
                for t, key in enumerate(means):
                    x = predictor(tensors, key, [plan.seed, 2, int(s), start])
                    total[t] += x.sum(0, dtype=torch.float64).cpu().numpy()
            for mean, of_key in zip(means.values(), total / len(sources), strict=True):
                mean[s] = of_key
    if without:
        warnings.warn(
            f"{plural(len(without), 'stratum', 'strata')} without a training control, e.g. {stratum_label(manager, without[0])}: "
            "they are predicted from controls of the same covariates in other batches, or else from all controls.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return StratumPredictions(code, means)


def _sources(pool: np.ndarray, of_pool: list[np.ndarray], wanted: list[int], seed: int) -> tuple[np.ndarray, bool]:
    """Controls of a stratum, else of its covariates, else all; and whether they are of the stratum."""
    matched = bool((of_pool[0] == wanted[0]).any())
    found = pool
    for codes, code in zip(of_pool, wanted, strict=True):
        if (codes == code).any():
            found = pool[codes == code]
            break
    if len(found) > _STRATUM_SOURCES:
        rng = np.random.default_rng([seed, 1, int(wanted[0])])
        found = np.sort(rng.choice(found, _STRATUM_SOURCES, replace=False))
    return found, matched
