from __future__ import annotations

import json

import numpy as np
import pytest

from scvi_causal.benchmark import ModelSpec, Task
from scvi_causal.benchmark._folds import make_folds
from scvi_causal.benchmark._job import Job, Scoring, run_job
from scvi_causal.benchmark._screen import Screen
from scvi_causal.benchmark._tuning import inner_fold

from .predictors import MeanShift, Memoriser

pytestmark = pytest.mark.usefixtures("quick_garbage")

QUICK = Scoring(n_de=10, max_cells=50, n_bootstrap=0, n_permutations=0)
TASKS = [
    Task("seen"),
    Task("unseen", n_folds=3),
    Task("combination", n_folds=3),
    Task("context-perturbation", covariate_key="cell_type"),
]


class Tunable(MeanShift):
    """Records what it is fitted on; some factors are no good."""

    fitted: list = []

    def __init__(self, factor=1.0, other=None):
        super().__init__(factor)
        self.other = other
        if factor == "bad":
            raise ValueError("factor is no number")

    def fit(self, adata):
        super().fit(adata)
        self.fitted.append((self.factor, set(adata.obs_names)))


@pytest.fixture
def fitted():
    Tunable.fitted.clear()
    return Tunable.fitted


def do(screen, fold, factory, **kwargs):
    return run_job(screen, Job("tuned", ModelSpec(factory, **kwargs), fold, QUICK))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_choices_are_tried_on_a_split_of_the_training_cells(screen, context_screen, task, fitted):
    used = context_screen if task.covariate_key else screen
    fold = make_folds(used, task)[0]
    result = do(used, fold, Tunable, grid={"factor": [20.0, 1.0, -20.0]})
    assert result.status == "ok"
    told = json.loads(result.rows["tuned"].iloc[0])
    assert told["chosen"] == {"factor": 1.0}
    assert [tried["factor"] for tried in told["tried"]] == [20.0, 1.0, -20.0]
    assert "squared error" in told["criterion"]
    train = set(used.adata.obs_names[fold.train])
    assert [factor for factor, _ in fitted] == [20.0, 1.0, -20.0, 1.0]
    for _, cells in fitted[:-1]:
        assert cells < train
        assert cells == fitted[0][1]
    assert fitted[-1][1] == train
    alone = do(used, fold, Tunable, kwargs={"factor": 1.0})
    np.testing.assert_array_equal(alone.effects, result.effects)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_the_inner_question_is_of_the_same_kind(screen, context_screen, task):
    used = context_screen if task.covariate_key else screen
    fold = make_folds(used, task)[0]
    part = used.restrict(fold.train)
    inner = inner_fold(part, fold)
    assert inner.task == task.kind
    controls = part.is_control.sum()
    for population in inner.populations:
        assert not set(population.reference) & set(inner.train)
        assert not set(population.observed) & set(inner.train)
    assert part.is_control[inner.train].sum() < controls  # halved again


def test_a_choice_that_fails_is_not_chosen(screen, fitted):
    fold = make_folds(screen, Task("unseen", n_folds=3))[0]
    result = do(screen, fold, Tunable, grid={"factor": ["bad", 1.0]})
    told = json.loads(result.rows["tuned"].iloc[0])
    assert told["chosen"] == {"factor": 1.0}
    assert told["tried"][0] == {"factor": "bad", "score": None, "error": "ValueError: factor is no number"}
    failed = do(screen, fold, Tunable, grid={"factor": ["bad", "bad"]})
    assert failed.status == "failed"
    assert "No choice of the grid could be fitted" in failed.error


def test_one_choice_needs_no_inner_split(screen, fitted):
    fold = make_folds(screen, Task("unseen", n_folds=3))[0]
    result = do(screen, fold, Tunable, grid={"factor": [2.0]})
    assert [factor for factor, _ in fitted] == [2.0]
    assert json.loads(result.rows["tuned"].iloc[0]) == {"chosen": {"factor": 2.0}}


def test_where_there_is_no_inner_split_the_first_choice_stands(context_screen, fitted):
    """Two contexts: without the one that is held out, none can be left out of what remains."""
    fold = make_folds(context_screen, Task("context", covariate_key="cell_type"))[0]
    result = do(context_screen, fold, Tunable, grid={"factor": [3.0, 1.0]})
    told = json.loads(result.rows["tuned"].iloc[0])
    assert result.status == "ok"
    assert [factor for factor, _ in fitted] == [3.0]
    assert told["chosen"] == {"factor": 3.0}
    assert "not tuned: task='context' leaves out each value" in told["reason"]


def test_a_model_of_this_package_is_tuned(adata, screen):
    changed = adata.copy()
    import pandas as pd

    names = [f"G0{i}" for i in range(6)]
    changed.uns["features"] = pd.DataFrame(np.random.default_rng(0).normal(size=(6, 2)), index=names).rename(
        columns=str
    )
    screen = Screen.build(changed, size_factor_key="library", perturbation_features_key="features")
    fold = make_folds(screen, Task("unseen", n_folds=3))[0]
    result = do(screen, fold, "NearestPerturbation", grid={"n_neighbors": [1, 3]})
    assert result.status == "ok"
    assert json.loads(result.rows["tuned"].iloc[0])["chosen"]["n_neighbors"] in (1, 3)


def test_tuning_does_not_look_at_the_test_cells(screen):
    """The choice is the same whatever the held-out cells are."""
    fold = make_folds(screen, Task("unseen", n_folds=3))[0]
    rows = np.concatenate([p.observed for p in fold.populations] + [fold.populations[0].reference])
    changed = screen.adata.copy()
    x = changed.X.toarray()
    x[rows] = x[np.random.default_rng(0).permutation(rows)]
    changed.X = type(changed.X)(x)
    other = Screen.build(changed, size_factor_key="library")
    told = [do(s, fold, Memoriser, grid={}).rows["tuned"].iloc[0] for s in (screen, other)]
    assert told == ["", ""]
    grid = {"factor": [0.5, 1.0, 2.0]}
    told = [do(s, fold, Tunable, grid=grid).rows["tuned"].iloc[0] for s in (screen, other)]
    assert told[0] == told[1]
