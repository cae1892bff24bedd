"""Quality labels in the benchmarks come from the training cells: what is held out neither has one nor moves a threshold."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scvi_causal.benchmark import ModelSpec, Task
from scvi_causal.benchmark._folds import make_folds
from scvi_causal.benchmark._job import Scoring
from scvi_causal.benchmark._model_job import make_predictor
from scvi_causal.benchmark._prepared import prepare
from scvi_causal.benchmark._screen import Screen
from scvi_causal.data import simulate_screen

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COLUMNS = {"counts": "library_size_full", "genes": None}


class Recorder:
    """Keeps what it is given, as a model would see it."""

    seen: list

    @classmethod
    def setup_anndata(cls, adata, **kwargs):
        cls.seen = [adata.obs.copy(), kwargs]

    def __init__(self, adata, **kwargs):
        pass

    def train(self, **kwargs):
        pass

    def predict_counterfactual(self, targets, adata, **kwargs):
        self.seen.append(adata.obs.copy())


@pytest.fixture(scope="module")
def screens():
    """The module of the screens, which is no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import _screens
    finally:
        sys.path.remove(str(BENCHMARKS))
    return _screens


def fit(screens, adata):
    screen = Screen.build(adata, size_factor_key="library_size_full")
    fold = make_folds(screen, Task("seen"), 0)[0]
    prepared = prepare(screen, fold, Scoring())
    spec = ModelSpec(screens.partial(screens.WithQuality, Recorder, {"quality_key": "quality"}, COLUMNS, "batch"))
    predictor = make_predictor(spec, screen, 7)
    predictor.fit(prepared.training_data(spec))
    predictor.predict(prepared.source_data(""), ["control"])
    return fold, predictor


def make():
    adata = simulate_screen(
        n_genes=20, n_perturbations=2, n_cells_per_perturbation=60, n_control=320, n_batches=2, seed=0
    ).adata
    adata.obs["library_size_full"] = np.random.default_rng(0).lognormal(8.0, 0.4, adata.n_obs)
    return adata


def test_held_out_cells_neither_have_labels_nor_move_thresholds(screens):
    adata = make()
    fold, predictor = fit(screens, adata)
    train, setup, source = Recorder.seen
    thresholds = predictor.thresholds
    assert predictor.seed == 7
    assert setup == {"quality_key": "quality"}
    assert set(train.index) == set(adata.obs_names[fold.train])
    assert "quality" not in adata.obs
    assert 0 < (train["quality"] == "fail").mean() < 0.5
    # sources are training cells, and keep the label that they were trained with
    pd.testing.assert_series_equal(source["quality"], train["quality"].loc[source.index])

    held_out = np.setdiff1d(np.arange(adata.n_obs), fold.train)
    column = adata.obs.columns.get_loc("library_size_full")
    adata.obs.iloc[held_out, column] = adata.obs["library_size_full"].iloc[held_out] * 50
    again, predictor = fit(screens, adata)
    np.testing.assert_array_equal(again.train, fold.train)
    pd.testing.assert_frame_equal(predictor.thresholds, thresholds)
    pd.testing.assert_series_equal(Recorder.seen[0]["quality"], train["quality"])


def test_every_screen_says_by_which_columns_cells_are_judged(screens):
    assert set(screens.QUALITY_OF) == set(screens.SETTINGS) == set(screens.BASELINES) == set(screens.FILES)
    spec = screens.cradle_vae("kang", n_latent=5)
    assert spec.factory.keywords == {"kwargs": {"n_latent": 5}}
    assert spec.factory.args[1]["categorical_covariate_keys"] == ["cell_type"]
