"""The choice of a model's arguments, on training cells alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ._folds import make_folds

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._folds import Fold
    from ._models import ModelSpec
    from ._screen import Screen

CRITERION = "squared error of the mean profiles over that of no change, summed over inner populations"
_MIN_CELLS = 4


def tune(
    screen: Screen,
    fold: Fold,
    spec: ModelSpec,
    errors: Callable[[Screen, Fold, ModelSpec], list[tuple[float, float]]],
) -> tuple[ModelSpec, str]:
    """Choose among ``spec.choices()`` by their errors on an inner fold.

    The inner fold asks the same kind of question of the training cells alone, with the control cells halved again. A choice
    that fails is not chosen. Where the training cells cannot be split that way, the first choice stands.

    Parameters
    ----------
    screen, fold
        The outer fold.
    spec
        The model, with its grid.
    errors
        Trains and predicts on a screen and fold; squared error of the prediction and of no change for each population.

    Returns
    -------
    The specification with the choice in ``kwargs`` and no grid; and JSON that says what was tried, by what, and what was chosen.
    """
    choices = spec.choices()
    if len(choices) == 1:
        return _chosen(spec, choices[0]), "" if not spec.grid else json.dumps({"chosen": choices[0]}, default=repr)
    inner_screen = screen.restrict(fold.train)
    try:
        inner = inner_fold(inner_screen, fold)
    except ValueError as error:
        told = {"chosen": choices[0], "reason": f"not tuned: {error}"}
        return _chosen(spec, choices[0]), json.dumps(told, default=repr)
    scores = [_score(errors, inner_screen, inner, _chosen(spec, choice)) for choice in choices]
    usable = [i for i, (value, _) in enumerate(scores) if np.isfinite(value)]
    if not usable:
        raise ValueError(f"No choice of the grid could be fitted on the inner split; the first: {scores[0][1]}")
    best = min(usable, key=lambda i: scores[i][0])
    tried = [
        {**choice, "score": round(value, 6) if np.isfinite(value) else None, **({"error": text} if text else {})}
        for choice, (value, text) in zip(choices, scores, strict=True)
    ]
    told = {"chosen": choices[best], "criterion": CRITERION, "inner": inner.description, "tried": tried}
    return _chosen(spec, choices[best]), json.dumps(told, default=repr)


def inner_fold(screen: Screen, fold: Fold) -> Fold:
    """The fold of the inner split with the most populations; ``screen`` holds the training cells alone.

    Raises
    ------
    ValueError
        If the training cells cannot answer this kind of question.
    """
    joint = sum(len(tokens) > 1 for tokens in screen.tokens.values())
    n_units = {"unseen": len(screen.targets), "combination": joint}.get(fold.task, fold.question.n_folds)
    question = replace(fold.question, holdout=None, n_folds=max(2, min(fold.question.n_folds, n_units)))
    # pairs in folds: a single pair is too little to choose by
    folds = make_folds(screen, question, fold.seed, fold.controls, min_cells=_MIN_CELLS, max_pairs=0)
    return max(folds, key=lambda inner: (len(inner.populations), -inner.index))


def _chosen(spec: ModelSpec, choice: dict[str, Any]) -> ModelSpec:
    return replace(spec, kwargs={**spec.kwargs, **choice}, grid={})


def _score(errors: Callable, screen: Screen, fold: Fold, spec: ModelSpec) -> tuple[float, str]:
    """The criterion, or NaN and why there is none."""
    try:
        found = errors(screen, fold, spec)
    except Exception as error:  # noqa: BLE001  # whatever a model raises, another choice may do
        return float("nan"), f"{type(error).__name__}: {error}"
    error, baseline = np.sum(found, axis=0) if found else (np.nan, np.nan)
    return float(error / baseline) if baseline > 0 else float("nan"), "" if found else "nothing was predicted"
