"""Train the models that fit the question, predict the held-out cells, score them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_causal import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

    from ._holdout import Task

SPLIT_KEY = "scvi_causal_split"
CEILING = "noise ceiling"


@dataclass
class Run:
    """What came of one model."""

    name: str
    model: Any = None
    predicted: Any = None
    """(cells, genes) predicted cells of the first task, for the pictures; those of all tasks could fill the memory."""
    scores: list[dict] = field(default_factory=list)
    seconds: float = float("nan")
    left_out: str = ""
    """Why the model is not in the table; empty if it is."""


def candidates(n_trained: int, has_features: bool) -> tuple[list[tuple[str, type]], dict[str, str]]:
    """Models for the table, SCCVAE first, and the reason for each one left out.

    Parameters
    ----------
    n_trained
        Perturbations with training cells.
    has_features
        Whether features of perturbations were given.
    """
    import scvi_causal

    names = ["SCCVAE", "ControlMean", "Additive"]
    left_out = {}
    if n_trained > 1:
        names.insert(2, "PerturbedMean")
    else:
        left_out["PerturbedMean"] = "with one training perturbation it is the same as Additive"
    if has_features and n_trained > 1:
        names += ["LinearEffect", "NearestPerturbation"]
    else:
        left_out["LinearEffect, NearestPerturbation"] = "need several training perturbations and --features-key"
    return [(name, getattr(scvi_causal, name)) for name in names], left_out


def run_model(
    name: str,
    model_class: type,
    adata: AnnData,
    tasks: list[Task],
    setup: dict,
    *,
    output: str,
    train: dict | None = None,
    seed: int = 0,
    score: Callable[[Task, Any], dict],
) -> Run:
    """Set up, train, predict every task from its source cells, score. A model that cannot do it says why in ``left_out``."""
    started = time.perf_counter()
    run = Run(name)
    try:
        model_class.setup_anndata(adata, **setup)
        model = model_class(adata)
        model.train(split_key=SPLIT_KEY, **(train or {}))
        reason = _cannot_predict(model, tasks)
        if reason:
            run.left_out = reason
            return run
        for task in tasks:
            predicted = predict(model, task, output, seed)
            run.predicted = predicted if run.predicted is None else run.predicted
            seconds = time.perf_counter()
            run.scores.append(score(task, predicted))
            started += time.perf_counter() - seconds  # the time of a model is not that of its scores
    except ValueError as error:
        return Run(name, left_out=str(error))
    run.model, run.seconds = model, time.perf_counter() - started
    return run


def _cannot_predict(model, tasks: list[Task]) -> str:
    answer = model.can_predict(sorted({task.perturbation for task in tasks}))
    refused = answer[~answer["predictable"].to_numpy(dtype=bool)]
    return "; ".join(f"{name}: {reason}" for name, reason in zip(refused.index, refused["reason"], strict=True))


def predict(model, task: Task, output: str, seed: int):
    """Cells of the control half that models may see, under the perturbation of the task: draws, as observed cells are."""
    predicted = model.predict_counterfactual(
        [task.perturbation], indices=task.source, output=output, sample=True, key_added=None, seed=seed
    )
    return predicted.X


def make_scorer(x, pca, n_de: int, seed: int) -> Callable[[Task, Any], dict]:
    """Return a function that scores predicted cells of a task against the observed ones in ``x``."""

    def score(task: Task, predicted) -> dict:
        source, reference = x[task.source], x[task.reference]
        options = {"n_de": n_de, "pca": pca, "seed": seed}
        return metrics.score_counterfactual(x[task.observed], predicted, source, reference, **options)

    return score


def ceiling(x, tasks: list[Task], pca, n_de: int, seed: int) -> Run:
    """Half of the real cells as a prediction of the other half, on the same numbers."""
    scores = [
        metrics.noise_ceiling(x[t.observed], x[t.source], x[t.reference], seed, n_de, pca=pca, n_splits=5)
        for t in tasks
    ]
    return Run(CEILING, scores=scores)


def tabulate(runs: list[Run]) -> pd.DataFrame:
    """Mean over tasks of each number, one row per model in the order given."""
    columns = [name for name in metrics.METRICS if name in runs[0].scores[0]]
    rows = {
        run.name: {key: np.mean([score[key] for score in run.scores]) for key in columns} for run in runs if run.scores
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["seconds"] = [run.seconds for run in runs if run.scores]
    return table.rename_axis("model")


def tabulate_tasks(runs: list[Run], tasks: list[Task]) -> pd.DataFrame:
    """Every number of every model and task: one row each."""
    rows = [
        {"model": run.name, "perturbation": task.perturbation, "context": task.context, **score}
        for run in runs
        for task, score in zip(tasks, run.scores, strict=False)
    ]
    return pd.DataFrame(rows)
