"""A job is judged by what is in its rows: right numbers from good models, and what went wrong with the others."""

from __future__ import annotations

import os
import pickle
import random
import warnings

import numpy as np
import pandas as pd
import pytest
import scvi
import torch

from scvi_causal import metrics
from scvi_causal.benchmark import ModelSpec, Task
from scvi_causal.benchmark import _model_job as model_job
from scvi_causal.benchmark import _prepared as prepared_fold
from scvi_causal.benchmark._folds import make_folds
from scvi_causal.benchmark._job import CEILING, COST_COLUMNS, ROW_COLUMNS, Job, Scoring, run_job
from scvi_causal.benchmark._prepared import prepare
from scvi_causal.metrics import METRICS

from .predictors import MeanShift, Misbehaving, Noisy, Recorder

pytestmark = pytest.mark.usefixtures("quick_garbage")

QUICK = Scoring(n_de=10, max_cells=100, n_splits=2, n_bootstrap=0, n_permutations=0)


@pytest.fixture(scope="module")
def fold(screen):
    return make_folds(screen, Task("unseen", n_folds=3))[0]


@pytest.fixture(scope="module")
def context_fold(context_screen):
    """Two perturbations in both contexts."""
    return make_folds(context_screen, Task("unseen", holdout=("G01", "G04")))[0]


def do(screen, fold, factory, *args, **kwargs):
    return run_job(screen, Job("it", ModelSpec(factory, *args, **kwargs), fold, QUICK))


def without_costs(result):
    return result.rows.drop(columns=list(COST_COLUMNS))


# ---------------------------------------------------------------------- good models


def test_rows_hold_the_numbers_of_the_metrics(screen, fold):
    result = do(screen, fold, MeanShift)
    assert result.status == "ok"
    assert list(result.rows) == [*ROW_COLUMNS, *METRICS, *COST_COLUMNS]
    x, train = screen.x.toarray().astype(float), fold.train
    labels = screen.labels
    shift = x[train][labels[train] != "control"].mean(0) - x[train][labels[train] == "control"].mean(0)
    trained = [x[train][labels[train] == label].mean(0) for label in set(labels[train]) - {"control"}]
    average = np.mean(trained, axis=0)
    for (_, row), population in zip(result.rows.iterrows(), fold.populations, strict=True):
        observed, source, reference = (
            x[cells] for cells in (population.observed, population.source, population.reference)
        )
        predicted = source + shift
        own = np.flatnonzero(screen.adata.var_names == population.perturbation)
        others = np.setdiff1d(np.arange(30), own)
        score = metrics.score_counterfactual(observed, predicted, source, reference, n_de=10, distances=False)
        expected = {
            name: score[name] for name in ("r2", "r2_de", "mse", "mse_ratio", "pearson_effect", "variance_ratio")
        }
        expected["pearson_others"] = metrics.pearson_effect(observed, predicted, source, reference, genes=others)
        expected["pearson_centred"] = metrics.pearson_centred(observed, predicted, average)
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, rel=1e-4), name
        assert (row["n_observed"], row["n_predicted"]) == (len(observed), len(source))
        effect = result.effects.loc[(population.perturbation, population.context)]
        np.testing.assert_allclose(effect, shift, atol=1e-5)
    # one prediction for all: it is as near to each candidate as it is, and the ranks of two candidates differ
    candidates = {label: x[labels == label].mean(0) - x[fold.populations[0].reference].mean(0) for label in set(labels)}
    del candidates["control"]
    beyond = ~screen.adata.var_names.isin(screen.targets)

    def cosine(a, b):
        return a[beyond] @ b[beyond] / np.linalg.norm(a[beyond]) / np.linalg.norm(b[beyond])

    nearness = {label: cosine(shift, effect) for label, effect in candidates.items()}
    for _, row in result.rows.iterrows():
        better = sum(value > nearness[row["perturbation"]] for value in nearness.values())
        assert row["discrimination"] == pytest.approx(1 - better / (len(candidates) - 1))


@pytest.mark.parametrize("kind", ["context", "context-perturbation"])
def test_average_of_a_context_without_perturbations_comes_from_the_others(context_screen, kind):
    task = Task(kind, covariate_key="cell_type")
    prepared = prepare(context_screen, make_folds(context_screen, task)[0], QUICK)
    x, train, labels = context_screen.x.toarray(), prepared.fold.train, context_screen.labels

    def mean(label, context):
        chosen = train[(labels[train] == label) & (context_screen.contexts[train] == context)]
        return x[chosen].mean(0)

    trained_here = set(labels[train[context_screen.contexts[train] == "type_0"]]) - {"control"}
    if kind == "context":
        assert not trained_here
        names = set(labels) - {"control"}
        shift = np.mean([mean(label, "type_1") - mean("control", "type_1") for label in names], axis=0)
        expected = x[prepared.fold.populations[0].source].mean(0) + shift
    else:
        assert len(trained_here) == 8
        expected = np.mean([mean(label, "type_0") for label in trained_here], axis=0)
    np.testing.assert_allclose(prepared.averages["type_0"], expected, atol=1e-5)


def test_candidates_of_the_seen_task_are_held_out_cells(screen):
    (fold,) = make_folds(screen, Task("seen"))
    prepared = prepare(screen, fold, QUICK)
    names, effects = prepared.candidates[""]
    reference = screen.x[fold.populations[0].reference].toarray().mean(0)
    assert sorted(names) == sorted(p.perturbation for p in fold.populations)
    for population in fold.populations:
        expected = screen.x[population.observed].toarray().mean(0) - reference
        np.testing.assert_allclose(effects[names.index(population.perturbation)], expected, atol=1e-5)


def test_jobs_of_a_fold_share_what_is_observed(screen, fold):
    do(screen, fold, MeanShift)
    shared = prepare(screen, fold, QUICK)
    population = shared.population(0)
    do(screen, fold, MeanShift)
    assert prepare(screen, fold, QUICK) is shared
    assert shared.population(0) is population
    other = make_folds(screen, Task("unseen", n_folds=3))[1]
    do(screen, other, MeanShift)
    assert len(screen.cache) == 1  # memory is that of one fold


# ---------------------------------------------------------------------- what a model is shown


def test_test_cells_are_physically_absent(screen, fold):
    result = do(screen, fold, Recorder)
    seen = Recorder.last
    assert seen.trained_on.obs_names.tolist() == screen.adata.obs_names[fold.train].tolist()
    raw = screen.adata.X[fold.train]
    assert (seen.trained_on.X != raw).nnz == 0
    held_out = {p.perturbation for p in fold.populations}
    assert not held_out & set(seen.trained_on.obs["perturbation"].cat.categories)
    assert set(seen.trained_on.obs["split"]) == {"train"}
    assert set(seen.trained_on.uns) == {"grn"}
    ((sources, targets),) = seen.asked
    assert targets == [p.perturbation for p in fold.populations]
    assert sources.obs_names.tolist() == screen.adata.obs_names[fold.populations[0].source].tolist()
    assert set(sources.obs["perturbation"]) == {"control"}
    assert seen.seed == fold.model_seed
    # what it did to its copies is nobody else's business
    assert screen.adata.X.sum() > 0
    pd.testing.assert_frame_equal(without_costs(do(screen, fold, Recorder)), without_costs(result))


def test_only_what_the_setup_names_is_shown(adata, fold):
    changed = adata.copy()
    changed.uns["features"] = pd.DataFrame(np.eye(6), index=[f"G0{i}" for i in range(6)])
    changed.uns["rank_genes_groups"] = "knows the test cells"
    changed.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    changed.varm["gene_features"] = np.ones((30, 2))
    from scvi_causal.benchmark._screen import Screen

    screen = Screen.build(changed, perturbation_features_key="features")
    do(screen, fold, Recorder, setup={"features_of_genes": "gene_features"})
    shown = Recorder.last.trained_on
    assert set(shown.uns) == {"grn", "features"}
    assert list(shown.varm) == ["gene_features"]
    assert not shown.obsm


def test_a_share_of_each_population_is_for_validation(screen, fold):
    do(screen, fold, Recorder, valid_size=0.1)
    obs = Recorder.last.trained_on.obs
    share = (obs["split"] == "valid").groupby(obs["perturbation"], observed=True).mean()
    assert share.between(0.09, 0.1001).all()


def test_many_targets_are_asked_for_in_parts(screen, monkeypatch):
    (fold,) = make_folds(screen, Task("seen"))
    whole = do(screen, fold, Recorder)
    assert len(Recorder.last.asked) == 1
    monkeypatch.setattr(model_job, "MAX_VALUES", 2 * 30 * len(fold.populations[0].source))
    parts = do(screen, fold, Recorder)
    assert [len(targets) for _, targets in Recorder.last.asked] == [2, 2, 2, 2, 1]
    pd.testing.assert_frame_equal(without_costs(parts), without_costs(whole))


# ---------------------------------------------------------------------- models that go wrong

WRONG = {
    "fit raises": "RuntimeError: no luck",
    "fit exits": "SystemExit: 3",
    "predict raises": "ValueError: cannot do that",
    "can_predict is odd": "can_predict has to return a DataFrame",
    "NaN": "1 of 4,500 predicted values are NaN or infinite",
    "nothing": "predict returned None",
    "array": "predict returned a ndarray of shape (300, 30)",
    "too few genes": "it lacks 1 gene ('G29')",
    "other genes": "it lacks 30 genes ('G00', 'G01', 'G02' and 27 more) and has 30 genes that the data do not have ('g00'",
    "gene order": "in another order, from position 0 on ('G29' instead of 'G00')",
    "no labels": "no column obs['perturbation']",
    "no cells": "without predicted cells",
    "missing target": "no cell of the target",
    "counts": "these look like counts",
}


@pytest.mark.parametrize("how", WRONG)
def test_what_went_wrong_is_said_in_the_rows(screen, fold, how):
    result = do(screen, fold, Misbehaving, {"how": how})
    assert result.status == "failed"
    bad = result.rows[result.rows["status"] == "failed"]
    one = {"NaN": 0, "missing target": 1}.get(how)
    assert bad.index.tolist() == ([0, 1] if one is None else [one])
    for _, row in bad.iterrows():
        assert WRONG[how] in row["error"]
        assert row[list(METRICS)].isna().all()
    good = result.rows[result.rows["status"] != "failed"]
    assert good["status"].eq("ok").all()
    assert good["pearson_effect"].notna().all()
    assert result.effects.notna().all(axis=1).sum() == len(good)
    assert WRONG[how] in result.error
    assert result.error.split(":")[0] in result.traceback
    assert len(result.rows) == 2


def test_an_interrupt_passes(screen, fold):
    with pytest.raises(KeyboardInterrupt):
        do(screen, fold, Misbehaving, {"how": "interrupted"})


@pytest.mark.parametrize(("how", "refused"), [("refuses one", [True, False]), ("refuses", [True, True])])
def test_what_a_model_refuses_is_no_failure(screen, fold, how, refused):
    result = do(screen, fold, Misbehaving, {"how": how})
    assert (result.rows["status"] == "refused").tolist() == refused
    assert result.rows["error"].tolist() == ["never heard of it" if r else "" for r in refused]
    assert result.status == ("refused" if all(refused) else "ok")


def test_one_context_does_not_cost_the_other(context_screen, context_fold):
    result = do(context_screen, context_fold, Misbehaving, {"how": "raises in one context"})
    by_context = result.rows.groupby("context")["status"].unique().map(list).to_dict()
    assert by_context == {"type_0": ["failed"], "type_1": ["ok"]}
    assert result.rows.loc[result.rows["status"] == "ok", "discrimination"].notna().all()


def test_an_answer_that_breaks_the_checks_is_a_failure_too(screen, fold):
    class Odd(MeanShift):
        @property
        def scale(self):
            raise KeyError("scale")

    result = do(screen, fold, Odd)
    assert result.rows["error"].tolist() == ["KeyError: 'scale'"] * 2


def test_a_fold_with_many_populations_does_not_keep_them_all(screen, monkeypatch):
    (fold,) = make_folds(screen, Task("seen"))
    whole = do(screen, fold, MeanShift)
    screen.cache.clear()
    monkeypatch.setattr(prepared_fold, "KEPT_VALUES", 3 * 4 * QUICK.max_cells * 30)
    parts = do(screen, fold, MeanShift)
    assert len(prepare(screen, fold, QUICK)._populations) == 3
    screen.cache.clear()
    pd.testing.assert_frame_equal(without_costs(parts), without_costs(whole))


def test_factories_that_make_no_predictor(screen, fold):
    result = do(screen, fold, dict)
    assert "made a dict without 'fit', 'predict'" in result.error
    result = do(screen, fold, MeanShift, {"faktor": 2})
    assert "unexpected keyword argument 'faktor'" in result.rows["error"].iloc[0]


def test_a_model_of_this_package_that_lacks_something(screen, fold):
    result = do(screen, fold, "NearestPerturbation")
    assert set(result.rows["status"]) == {"failed"}
    assert "needs features of the perturbations" in result.error


# ---------------------------------------------------------------------- nothing is left behind


def _state():
    return (
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        torch.get_rng_state().tolist(),
        scvi.settings.seed,
        {k: os.environ.get(k) for k in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "XLA_FLAGS")},
        torch.backends.cudnn.deterministic,
        list(warnings.filters),
    )


@pytest.mark.parametrize("factory", ["Additive", Noisy, MeanShift])
def test_the_process_is_as_it_was(screen, fold, factory):
    before = _state()
    result = do(screen, fold, factory)
    assert result.status == "ok"
    assert _state() == before
    assert result.warnings == (["UserWarning: noise is noise"] if factory is Noisy else [])


def test_the_same_whatever_ran_before(screen, fold):
    first = do(screen, fold, Noisy)
    np.random.default_rng(0)
    torch.randn(3)
    np.random.normal(size=3)  # noqa: NPY002
    screen.cache.clear()
    do(screen, make_folds(screen, Task("seen"))[0], "Additive")
    again = do(screen, fold, Noisy)
    pd.testing.assert_frame_equal(without_costs(first), without_costs(again))
    pd.testing.assert_frame_equal(first.effects, again.effects)
    other = make_folds(screen, Task("unseen", n_folds=3), seed=1)
    assert {f.model_seed for f in other}.isdisjoint({fold.model_seed})


def test_training_is_the_same_whatever_ran_before(screen, fold):
    options = {
        "kwargs": {"n_latent": 4, "n_hidden": 8, "n_programmes": 4},
        "train": {"max_epochs": 1, "accelerator": "cpu"},
    }
    first = do(screen, fold, "SCCVAE", **options)
    do(screen, fold, Noisy)
    again = do(screen, fold, "SCCVAE", **options)
    assert first.status == "ok"
    pd.testing.assert_frame_equal(without_costs(first), without_costs(again))
    assert (first.rows["fit_cpu_s"] > 0).all()
    assert (first.rows["score_cpu_s"] > 0).all()


def test_results_can_be_sent(screen, fold):
    for result in (do(screen, fold, MeanShift), do(screen, fold, Misbehaving, {"how": "fit raises"})):
        copy = pickle.loads(pickle.dumps(result))
        pd.testing.assert_frame_equal(copy.rows, result.rows)


def test_keys_stand_for_what_a_result_depends_on(screen, fold):
    folds = make_folds(screen, Task("unseen", n_folds=3))
    jobs = [
        Job("a", ModelSpec(MeanShift), fold, QUICK),
        Job("b", ModelSpec(MeanShift), fold, QUICK),
        Job("a", ModelSpec(MeanShift, {"factor": 2}), fold, QUICK),
        Job("a", ModelSpec(MeanShift), folds[1], QUICK),
        Job("a", ModelSpec(MeanShift), fold),
        Job(CEILING, None, fold, QUICK),
    ]
    keys = [job.key(screen.fingerprint) for job in jobs] + [jobs[0].key("other data")]
    assert len(set(keys)) == len(keys)
    assert Job("a", ModelSpec(MeanShift), folds[0], QUICK).key(screen.fingerprint) == keys[0]


# ---------------------------------------------------------------------- the ceiling


def test_ceiling_is_the_noise_ceiling_of_each_population(screen, fold):
    scoring = Scoring(n_de=10, max_cells=100, n_splits=3, n_bootstrap=20, n_permutations=0)
    result = run_job(screen, Job(CEILING, None, fold, scoring))
    assert result.is_ceiling
    assert result.status == "ok"
    for (_, row), population in zip(result.rows.iterrows(), fold.populations, strict=True):
        cells = [screen.x[rows] for rows in (population.observed, population.source, population.reference)]
        options = {"n_splits": 3, "spearman_brown": True, "n_bootstrap": 20, "metrics": ["pearson_effect", "mse"]}
        expected = metrics.noise_ceiling(*cells, 0, 10, max_cells=100, **options)
        for name in ("pearson_effect", "mse", "pearson_effect_low", "mse_high"):
            assert row[name] == pytest.approx(expected[name])
        assert 0 <= row["discrimination"] <= 1
        effect = result.effects.loc[(population.perturbation, "")]
        np.testing.assert_allclose(effect, cells[0].toarray().mean(0) - cells[2].toarray().mean(0), atol=1e-5)
    assert set(METRICS) <= set(result.rows)


def test_the_ceiling_says_whether_there_is_an_effect(screen, fold):
    result = run_job(screen, Job(CEILING, None, fold, Scoring(n_splits=1, n_bootstrap=0, n_permutations=99)))
    assert result.rows["p_effect"].between(0, 1).all()
    assert result.rows["p_effect"].min() == pytest.approx(0.01)


def test_a_run_that_is_terminated_is_no_failure_of_the_model(screen, fold):
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    class Terminated(MeanShift):
        def fit(self, adata):
            raise SIGTERMException  # what lightning raises in training when the process gets SIGTERM

    with pytest.raises(KeyboardInterrupt):
        do(screen, fold, Terminated)
