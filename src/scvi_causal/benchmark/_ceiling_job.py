"""The noise ceiling of a fold: real cells against real cells, on the numbers that models are scored by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_causal import metrics
from scvi_causal.metrics import METRICS

from ._model_job import Failure
from ._prepared import PreparedFold, prepare

if TYPE_CHECKING:
    from ._job import Job
    from ._resources import Meter
    from ._screen import Screen


def measure_ceiling(
    screen: Screen, job: Job, meter: Meter
) -> tuple[list[dict[str, Any]], np.ndarray, tuple[str, str], list[str]]:
    """Rows, observed effects, (error, traceback) and no warnings of the job of the ceiling."""
    fold, failure = job.fold, Failure()
    rows, effects = [], np.full((len(fold.populations), screen.x.shape[1]), np.nan, dtype=np.float32)
    with meter.phase("score"):
        prepared = prepare(screen, fold, job.scoring)
        for i, population in enumerate(fold.populations):
            row = {
                "task": fold.task,
                "fold": fold.index,
                "seed": fold.seed,
                "perturbation": population.perturbation,
                "context": population.context,
                "kind": population.kind,
                "n_observed": len(population.observed),
                "status": "ok",
                "error": "",
            }
            try:
                row |= _of_population(prepared, i)
                effects[i] = prepared.population(i).effect
            except Exception as error:  # noqa: BLE001  # one odd population must not cost the others theirs
                row |= {**dict.fromkeys(METRICS, np.nan), "status": "failed", "error": failure.note(error)}
            rows.append(row)
    return rows, effects, (failure.error, failure.trace), []


def _of_population(prepared: PreparedFold, i: int) -> dict[str, float]:
    population, scoring, seed = prepared.fold.populations[i], prepared.scoring, prepared.fold.seed
    x, observed = prepared.screen.x, prepared.screen.x[population.observed]
    options = {
        "n_de": scoring.n_de,
        "spearman_brown": True,
        "average": prepared.averages.get(population.context),
        "exclude": prepared.own_genes(population.perturbation),
        "pca": prepared.pca,
        "max_cells": scoring.max_cells,
    }
    cells = observed, *prepared.controls[population.context]
    found = {
        needs: metrics.noise_ceiling(
            *cells,
            seed,
            n_splits=n_splits,
            n_bootstrap=scoring.n_bootstrap if needs == "means" else 0,
            metrics=[name for name, metric in METRICS.items() if metric.needs == needs],
            **options,
        )
        for needs, n_splits in (("cells", scoring.n_cell_splits), ("means", scoring.n_splits))
    }
    score = dict.fromkeys(METRICS, np.nan) | found["cells"] | found["means"]
    for name in ("n_observed", "n_predicted"):  # those of the halves
        score.pop(name)
    score["discrimination"] = _discrimination(prepared, i)
    if scoring.n_permutations:
        score["p_effect"] = metrics.effect_test(
            observed, x[population.reference], n_permutations=scoring.n_permutations, seed=seed
        )
    return score


def _discrimination(prepared: PreparedFold, i: int) -> float:
    """Of one half of the cells as a prediction, the other half standing for the perturbation among the candidates."""
    population = prepared.fold.populations[i]
    source, reference = (m.mean for m in prepared.controls[population.context])
    labels, candidates = prepared.candidates[population.context]
    own, x = labels.index(population.perturbation), prepared.screen.x[population.observed]
    found = []
    for split in np.random.SeedSequence(prepared.fold.seed).generate_state(prepared.scoring.n_splits):
        halves = metrics.split_controls(np.ones(x.shape[0], dtype=bool), seed=int(split))
        first, second = (metrics.mean_profile(x[half]) for half in halves)
        others = candidates.copy()
        others[own] = second - reference
        found.append(
            metrics.discrimination(first[None] - source, others, np.array([own]), exclude=prepared.target_genes)[0]
        )
    return float(np.mean(found))
