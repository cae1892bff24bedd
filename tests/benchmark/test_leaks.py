"""Who memorises what it was given does not beat the ceiling; who was shown the test cells is caught; nobody else is accused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import scvi_causal
from scvi_causal.benchmark import ModelPredictor, ModelSpec, Task
from scvi_causal.benchmark import _leaks as leaks
from scvi_causal.benchmark._folds import make_folds
from scvi_causal.benchmark._job import CEILING, Job, Scoring, run_job
from scvi_causal.benchmark._leaks import COPIES, TOO_NEAR, HiddenCells, NoiseFloor, is_too_near, project
from scvi_causal.benchmark._screen import Screen
from scvi_causal.data import simulate_screen

from .predictors import Memoriser, as_prediction, log1p

pytestmark = pytest.mark.usefixtures("quick_garbage")

QUICK = Scoring(n_de=10, max_cells=20, n_splits=3, n_bootstrap=50, n_permutations=0)


@pytest.fixture(scope="module")
def simulation():
    return simulate_screen(
        n_genes=40, n_perturbations=10, n_cells_per_perturbation=80, n_control=400, n_cell_types=2, seed=1
    )


@pytest.fixture(scope="module")
def screens(simulation):
    """The screen without and with contexts."""
    return {
        key: Screen.build(simulation.adata, size_factor_key="library", covariate_key=key) for key in (None, "cell_type")
    }


TASKS = [
    Task("seen"),
    Task("unseen", n_folds=2),
    Task("context", covariate_key="cell_type"),
    Task("context-perturbation", covariate_key="cell_type", holdout=[("G12", "type_0"), ("G12", "type_1")]),
]


def do(screen, fold, name, factory=None, *args):
    spec = None if factory is None else ModelSpec(factory, *args)
    return run_job(screen, Job(name, spec, fold, QUICK)).rows


# ---------------------------------------------------------------------- memorising does not help


@pytest.mark.parametrize("task", TASKS[:3], ids=lambda task: task.kind)
def test_looking_up_what_was_given_does_not_beat_the_ceiling(screens, task):
    screen = screens[task.covariate_key]
    scores, ceiling, high = [], [], []
    for fold in make_folds(screen, task):
        rows = do(screen, fold, "memory", Memoriser)
        assert (rows["leak"] == "").all()
        found = do(screen, fold, CEILING)
        scores += rows["pearson_effect"].tolist()
        ceiling += found["pearson_effect"].tolist()
        high += found["pearson_effect_high"].tolist()
    # seen: what it gives is a replicate, no more; else it knows nothing that bears on the question
    assert np.mean(scores) < np.mean(ceiling) + (0.02 if task.kind == "seen" else -0.05)
    assert np.mean(np.array(scores) > high) <= (0.2 if task.kind == "seen" else 0.0)


def test_with_shared_controls_it_is_rewarded_for_their_noise(screens):
    """Why the default is independent: the same prediction, and controls on which both sides lean."""

    def score(controls):
        (fold,) = make_folds(screens[None], Task("seen"), controls=controls)
        rows = do(screens[None], fold, "memory", Memoriser)
        assert (rows["leak"] == "").all()
        return rows["pearson_effect"].mean()

    assert score("shared") > score("independent") + 0.02


# ---------------------------------------------------------------------- being shown the test cells does, and shows


class Cheat:
    """Holds test cells in a closure."""

    def __init__(self, adata, how):
        self.x, self.labels, self.how = log1p(adata), adata.obs["perturbation"].to_numpy(str), how
        self.types = adata.obs["cell_type"].to_numpy(str)

    def fit(self, adata):
        pass

    def predict(self, adata, targets):
        start, rng, cells = log1p(adata), np.random.default_rng(0), {}
        types = adata.obs["cell_type"].unique()
        for target in targets:
            real = self.x[(self.labels == target) & np.isin(self.types, types)]
            cells[target] = {
                "copies": real,
                "one copy": np.concatenate([start[1:] + 0.1, real[:1]]),
                "draws": real[rng.integers(len(real), size=300)],
                "mean": start - start.mean(0) + real.mean(0),
                "nearly the mean": start - start.mean(0) + real.mean(0) + 0.02,
            }[self.how]
        return as_prediction(cells, adata)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
@pytest.mark.parametrize(
    ("how", "signs"),
    [
        ("copies", {COPIES, TOO_NEAR}),
        ("one copy", {COPIES}),
        ("draws", {COPIES}),
        ("mean", {TOO_NEAR}),
        ("nearly the mean", {TOO_NEAR}),
    ],
)
def test_a_model_that_holds_the_test_cells_is_caught(screens, simulation, task, how, signs):
    screen = screens[task.covariate_key]
    fold = make_folds(screen, task)[0]
    hidden = np.setdiff1d(np.arange(simulation.adata.n_obs), fold.train)
    rows = do(screen, fold, "cheat", Cheat, {"adata": simulation.adata[hidden], "how": how})
    assert (rows["status"] == "ok").all()
    for sign in signs:
        caught = rows["leak"].str.contains(sign)
        assert caught.all(), (sign, rows["leak"].tolist())
    if how in ("mean", "nearly the mean"):
        assert not rows["leak"].str.contains(COPIES).any()


def test_copies_of_reference_controls_are_caught(screens, simulation):
    class Controls(Cheat):
        def predict(self, adata, targets):
            return as_prediction(dict.fromkeys(targets, self.x[self.labels == "control"]), adata)

    fold = make_folds(screens[None], Task("unseen", n_folds=2))[0]
    rows = do(screens[None], fold, "cheat", Controls, {"adata": simulation.adata, "how": ""})
    assert rows["leak"].str.contains(COPIES).all()


# ---------------------------------------------------------------------- the innocent


class Truth:
    """Knows the law of the simulation, and no cell of it: the best that an honest model can do."""

    def __init__(self, effects):
        self.effects = effects

    def fit(self, adata):
        x, labels = log1p(adata), adata.obs["perturbation"].to_numpy(str)
        self.control = x[labels == "control"].mean(0)

    def predict(self, adata, targets):
        x = log1p(adata)
        start = x - x.mean(0) + self.control
        return as_prediction({t: start + self.effects.loc[t].to_numpy() for t in targets}, adata)


@pytest.mark.parametrize("factory", ["ControlMean", "PerturbedMean", "Additive", Truth])
def test_honest_models_are_not_accused(screens, simulation, factory):
    arguments = [{"effects": simulation.effects}] if factory is Truth else []
    for task in TASKS[:3] if factory is not Truth else TASKS[:2]:
        screen = screens[task.covariate_key]
        for fold in make_folds(screen, task):
            assert (do(screen, fold, "honest", factory, *arguments)["leak"] == "").all()


@pytest.mark.parametrize("n_factors", [0, 2])
def test_the_chance_of_a_perfect_prediction_to_be_accused(monkeypatch, n_factors):
    """At a level of 5 %: the law of the squared error, for independent and for correlated genes, and for several at once."""
    monkeypatch.setattr(leaks, "LEVEL", 0.05)
    rng = np.random.default_rng(0)
    scale = rng.gamma(1.0, 1.0, 60)
    loadings = rng.normal(size=(n_factors, 60))
    single, pooled = [], []
    for _ in range(150):
        errors, floors = [], []
        for _ in range(4):
            cells = rng.normal(size=(50, 60)) * scale + rng.normal(size=(50, n_factors)) @ loadings
            floors.append(NoiseFloor(cells, cells.var(0, ddof=1)))
            errors.append(float(np.square(cells.mean(0)).sum()))
        single += [is_too_near([e], [f]) for e, f in zip(errors, floors, strict=True)]
        pooled.append(is_too_near(errors, floors))
    assert np.mean(single) < 0.07
    assert np.mean(pooled) < 0.09


def test_the_floor_is_the_error_of_the_truth():
    rng = np.random.default_rng(0)
    sd = np.array([1.0, 2.0, 0.0])
    cells = [rng.normal(size=(20, 3)) * sd for _ in range(2000)]
    expected = np.mean([NoiseFloor(x, x.var(0, ddof=1)).expected for x in cells])
    assert expected == pytest.approx(np.mean([np.square(x.mean(0)).sum() for x in cells]), rel=0.05)
    assert expected == pytest.approx(5 / 20, rel=0.05)
    many = NoiseFloor(rng.normal(size=(300, 10)), np.ones(10))
    assert many.degrees_of_freedom == pytest.approx(10, rel=0.1)
    one = NoiseFloor(rng.normal(size=(300, 1)) * np.ones(10), np.ones(10))
    assert one.degrees_of_freedom == pytest.approx(1)


def test_cells_without_variance_accuse_nobody():
    cells = np.ones((5, 3))
    assert not is_too_near([0.0], [NoiseFloor(cells, cells.var(0, ddof=1))])
    assert not is_too_near([], [])


# ---------------------------------------------------------------------- copies


@pytest.mark.parametrize("sparse", [True, False])
def test_copies_are_counted(sparse):
    rng = np.random.default_rng(0)
    x = rng.poisson(1.0, (200, 30)) * rng.gamma(2.0, 1.0, (200, 1))
    x = csr_matrix(x) if sparse else x
    hidden = HiddenCells(x, np.arange(100, 150), np.arange(100), project(x))
    assert hidden.n_copies(x[100:150].astype(np.float32)) == 50
    assert hidden.n_copies(x[:100]) == 0
    assert hidden.n_copies(x[150:]) == 0  # of another population
    dense = x.toarray() if sparse else x
    assert hidden.n_copies(dense[[120, 120, 0]]) == 2
    assert hidden.n_copies(dense[100:150] + 0.001) == 0


def test_what_equals_a_training_cell_or_is_hardly_there_is_no_evidence():
    rng = np.random.default_rng(0)
    x = csr_matrix(rng.poisson(1.0, (100, 30)).astype(float))
    twins = csr_matrix(np.concatenate([x.toarray(), x.toarray()[:10], np.eye(30)[:5]]))
    hidden = HiddenCells(twins, np.arange(90, 115), np.arange(90), project(twins))
    assert hidden.n_copies(twins[:90]) == 0
    assert hidden.n_copies(twins[100:]) == 0
    assert hidden.n_copies(twins[90:100]) == 10
    assert HiddenCells(twins, np.arange(0), np.arange(90), project(twins)).n_copies(twins) == 0


class Mistaken(ModelPredictor):
    """A model of this package that is fitted on the whole file by mistake."""

    def __init__(self, name, everything):
        super().__init__(getattr(scvi_causal, name), setup={"size_factor_key": "library"})
        self.everything = everything

    def fit(self, adata):
        everything = self.everything.copy()
        everything.obs["split"] = "train"
        super().fit(everything)


def test_a_model_that_was_fitted_on_the_whole_file_is_caught(screens, simulation):
    fold = make_folds(screens[None], Task("unseen", n_folds=2))[0]
    arguments = {"name": "Additive", "everything": simulation.adata}
    rows = do(screens[None], fold, "mistaken", Mistaken, arguments)
    assert (rows["leak"] == TOO_NEAR).all()
    assert (do(screens[None], fold, "honest", "Additive")["leak"] == "").all()
