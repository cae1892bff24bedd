"""The figures of the baselines that were measured by hand before there was a benchmark (benchmarks/results) come out of it."""

from __future__ import annotations

import pandas as pd
import pytest

from scvi_causal.benchmark import ModelSpec, Task
from scvi_causal.benchmark._folds import make_folds
from scvi_causal.benchmark._job import Job, Scoring, run_job
from scvi_causal.benchmark._screen import Screen

pytestmark = [pytest.mark.real_data, pytest.mark.usefixtures("quick_garbage")]

QUICK = Scoring(max_cells=10)


def table(path, task, models, controls="independent"):
    screen = Screen.build(path, size_factor_key="library_size_full", covariate_key=task.covariate_key)
    jobs = [
        Job(name, ModelSpec(name), fold, QUICK) for fold in make_folds(screen, task, 0, controls) for name in models
    ]
    rows = pd.concat([run_job(screen, job).rows for job in jobs])
    assert (rows["status"] == "ok").all()
    assert (rows["leak"] == "").all()
    return rows.groupby("model")[["r2_de", "pearson_effect", "mse_ratio"]].mean()


def test_kang_contexts(real_data):
    found = table(real_data("kang18_pbmc_ifnb.h5ad"), Task("context", covariate_key="cell_type"), ["Additive"])
    # three other halves of the controls: 0.575, 0.886, 0.319
    assert found.loc["Additive"].tolist() == pytest.approx([0.575, 0.886, 0.319], abs=0.01)


@pytest.mark.slow
def test_mcfaline_pairs(real_data):
    """The same halves of the controls, so the same figures to the last digit that was written down."""
    task = Task("context-perturbation", covariate_key="cell_type")
    found = table(real_data("mcfaline23_gbm.h5ad"), task, ["ControlMean", "PerturbedMean", "Additive"])
    assert found.loc["ControlMean"].tolist() == pytest.approx([0.842, 0.0, 1.0], abs=6e-4)
    assert found.loc["PerturbedMean"].tolist() == pytest.approx([0.915, 0.011, 0.432], abs=6e-4)
    assert found.loc["Additive"].tolist() == pytest.approx([0.830, 0.064, 1.233], abs=6e-4)


def test_papalexi_unseen_with_both_kinds_of_controls(real_data):
    path, task = real_data("papalexi21_thp1_eccite.h5ad"), Task("unseen")
    found = {kind: table(path, task, ["PerturbedMean"], kind) for kind in ("independent", "shared")}
    independent, shared = (found[kind].loc["PerturbedMean"] for kind in found)
    assert independent["pearson_effect"] == pytest.approx(0.227, abs=0.02)
    assert independent["mse_ratio"] == pytest.approx(1.95, abs=0.1)
    assert shared["pearson_effect"] == pytest.approx(0.305, abs=0.03)
