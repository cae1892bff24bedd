"""A whole run: what it returns, what it leaves on disk, how it goes on, and that engines do not matter."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvi_causal import benchmark
from scvi_causal.benchmark import _origin, _plan, _run
from scvi_causal.benchmark._engines import Crash
from scvi_causal.benchmark._job import COST_COLUMNS
from scvi_causal.metrics import METRICS

HERE = Path(__file__).parent
FAST = {"n_folds": 2, "report": False, "progress": False}
BASELINES = ["ControlMean", "PerturbedMean"]


@pytest.fixture
def small(adata):
    """Four perturbations in 20 genes."""
    keep = adata.obs["perturbation"].isin(["control", "G00", "G01", "G02", "G03"])
    return adata[keep, :20].copy()


@pytest.fixture
def fits(tmp_path):
    """Folder in which :class:`toys.Shift` notes its fits."""
    folder = tmp_path / "fits"
    folder.mkdir()
    return folder


def count(fits):
    return len(list(fits.iterdir()))


def same(first, second):
    """The same numbers to the last bit, costs aside."""
    for name in ("results", "ceiling"):
        one, two = (getattr(r, name).drop(columns=list(COST_COLUMNS)) for r in (first, second))
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    pd.testing.assert_frame_equal(first.effects(), second.effects(), check_exact=True)


def test_what_comes_back(small, tmp_path):
    result = benchmark.run(small, "unseen", BASELINES, out=tmp_path / "out", command="made by hand", **FAST)
    assert set(METRICS) | set(COST_COLUMNS) < set(result.results.columns)
    # four perturbations, each in one fold, and two models
    assert len(result.results) == 8
    assert len(result.ceiling) == 4
    assert result.results["status"].eq("ok").all()
    assert list(result.results["model"].unique()) == BASELINES
    assert result.missing == []
    assert list(result.table(populations="all").index) == [*BASELINES, "noise ceiling"]
    assert set(result.compare(populations="all")["model"]) <= set(BASELINES)
    config = result.config
    assert config["command"] == "made by hand"
    assert (config["task"], config["n_folds"], config["seeds"], config["engine"]) == ("unseen", 2, [0], "inprocess")
    assert config["data"]["cells"] == small.n_obs
    assert config["models"] == {"ControlMean": "ControlMean()", "PerturbedMean": "PerturbedMean()"}
    assert config["no_change"] == "ControlMean"
    assert config["folds"]["seed 0, fold 1"]["populations"] == 2
    assert {"Python", "scvi-causal", "torch"} <= set(config["versions"])
    pd.testing.assert_frame_equal(benchmark.load(tmp_path / "out").results, result.results)
    text = "BenchmarkResult('Benchmark: unseen perturbations', 'ControlMean', 'PerturbedMean', 8 rows)"
    assert repr(result) == text


def test_the_form_of_the_data_does_not_matter(adata, small, tmp_path):
    """A view, a file and a file that is not read: other processes could not be given the first and the last."""
    keep = np.flatnonzero(adata.obs_names.isin(small.obs_names))
    small.write_h5ad(tmp_path / "small.h5ad")
    backed = ad.read_h5ad(tmp_path / "small.h5ad", backed="r")
    forms = [small, adata[keep, :20], tmp_path / "small.h5ad", backed]
    made = [benchmark.run(x, models="ControlMean", out=tmp_path / str(i), **FAST) for i, x in enumerate(forms)]
    for other in made[1:]:
        same(made[0], other)
    pickle.dumps(_plan._whole(backed))
    assert not _plan._whole(forms[1]).is_view
    backed.file.close()


def test_effects_are_those_of_the_cells(small, tmp_path):
    result = benchmark.run(small, "unseen", "ControlMean", out=tmp_path / "out", **FAST)
    effects = result.effects()
    assert effects.index.names == ["model", "seed", "fold", "perturbation", "context"]
    assert list(effects.columns) == list(small.var_names)
    assert sorted(effects.loc["observed"].index.get_level_values("perturbation")) == ["G00", "G01", "G02", "G03"]
    # no change, but for the draws
    assert effects.loc["ControlMean"].abs().mean(axis=None) < 0.2 * effects.loc["observed"].abs().mean(axis=None)
    some = result.effects([("G01", "")])
    pd.testing.assert_frame_equal(some, effects[effects.index.get_level_values("perturbation") == "G01"])
    assert result.effects([("nothing", "")]).empty


def test_time_is_accounted_for(small, tmp_path):
    class Sleeper:
        def fit(self, adata):
            time.sleep(1.0)

        def predict(self, adata, targets):
            raise ValueError("it only sleeps")

    began = time.perf_counter()
    result = benchmark.run(small, "unseen", {"sleeper": Sleeper}, out=tmp_path / "out", **FAST)
    spent = time.perf_counter() - began
    times = result.config["time"]
    assert 2.0 <= times["model_s"] < times["wall_s"] <= spent
    assert times["outside_models"] == pytest.approx(1 - times["model_s"] / times["wall_s"], abs=0.01)
    # sleep is no work: the CPU was busy with the noise ceiling, and elsewhere as much as the machine had to load
    assert times["cpu_in_models"] < times["cpu_in_scores"] < 1
    assert times["score_cpu_s"] / times["cpu_s"] == pytest.approx(times["cpu_in_scores"], abs=0.01)


# ---------------------------------------------------------------------- going on


def test_what_is_done_is_not_done_again(small, tmp_path, toys, fits):
    out, models = tmp_path / "out", {"shift": (toys.Shift, {"diary": str(fits)})}
    lines = []
    first = benchmark.run(small, "unseen", models, out=out, **FAST | {"progress": lines.append})
    assert count(fits) == 2
    assert lines[0] == "4 jobs"
    assert "[2/4] shift, fold 0, seed 0" in lines
    lines.clear()
    second = benchmark.run(small, "unseen", models, out=out, **FAST | {"progress": lines.append})
    assert count(fits) == 2
    assert lines == ["4 jobs, 4 of them done before"]
    pd.testing.assert_frame_equal(first.results, second.results)
    records = json.loads((out / "run.json").read_text())["runs"]
    assert [(record["jobs_found"], record["jobs_run"]) for record in records] == [(0, 4), (4, 0)]
    # what the report says of times is that of the run that worked
    assert second.config["time"] == first.config["time"]


def test_models_and_seeds_are_added(small, tmp_path, toys, fits):
    out, shift = tmp_path / "out", (toys.Shift, {"diary": str(fits)})
    benchmark.run(small, "unseen", {"shift": shift}, out=out, **FAST)
    benchmark.run(small, "unseen", BASELINES, out=out, **FAST)
    result = benchmark.run(small, "unseen", {"shift": shift}, out=out, seeds=[0, 1], **FAST)
    assert count(fits) == 4
    done = result.results.groupby("model", sort=False)["seed"].unique().map(list)
    assert done.to_dict() == {"shift": [0, 1], "ControlMean": [0], "PerturbedMean": [0]}
    assert sorted(result.ceiling["seed"].unique()) == [0, 1]
    assert list(result.config["models"]) == ["shift", *BASELINES]
    assert result.config["seeds"] == [0, 1]
    whole = benchmark.run(small, "unseen", {"shift": shift}, out=tmp_path / "whole", seeds=[0, 1], **FAST)
    mine = result.results[result.results["model"] == "shift"].reset_index(drop=True)
    costs = list(COST_COLUMNS)
    pd.testing.assert_frame_equal(mine.drop(columns=costs), whole.results.drop(columns=costs), check_exact=True)


def test_a_model_that_changed_replaces_the_one_of_its_name(small, tmp_path, toys, fits):
    out = tmp_path / "out"
    before = benchmark.run(small, models={"shift": (toys.Shift, {"diary": str(fits)})}, out=out, **FAST)
    changed = {"shift": (toys.Shift, {"diary": str(fits), "factor": 0.0})}
    after = benchmark.run(small, models=changed, out=out, **FAST)
    assert count(fits) == 4
    assert len(after.results) == len(before.results)
    assert not np.allclose(after.results["mse"], before.results["mse"])
    assert "factor=0.0" in after.config["models"]["shift"]


def test_another_benchmark_is_refused(small, adata, tmp_path):
    out = tmp_path / "out"
    benchmark.run(small, "unseen", "ControlMean", out=out, **FAST)
    held = (out / "run.json").read_text()
    other = small.copy()
    other.X = other.X * 2
    for data, task, options, message in [
        (small, "unseen", {"n_folds": 3}, "n_folds=2 there, 3 now"),
        (small, "seen", {}, "task='unseen' there, 'seen' now"),
        (small, "unseen", {"controls": "shared"}, "controls='independent' there"),
        (small, "unseen", {"seeds": 5, "n_de": 3}, "n_de=50 there, 3 now"),
        (adata, "unseen", {}, "30 genes now"),
        (other, "unseen", {}, "whose values differ"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            benchmark.run(data, task, "ControlMean", out=out, **FAST | options)
        assert "choose another folder" in str(caught.value)
        assert "It holds 'ControlMean'." in str(caught.value)
    assert (out / "run.json").read_text() == held


def test_options_that_change_no_job_are_not_another_benchmark(small, tmp_path):
    out = tmp_path / "out"
    first = benchmark.run(small, "seen", "ControlMean", out=out, **FAST | {"n_folds": 2})
    second = benchmark.run(small, "seen", "ControlMean", out=out, **FAST | {"n_folds": 5})
    pd.testing.assert_frame_equal(first.results, second.results)


def test_another_version_is_another_benchmark(small, tmp_path, monkeypatch):
    import scvi_causal

    out = tmp_path / "out"
    benchmark.run(small, "unseen", "ControlMean", out=out, **FAST)
    monkeypatch.setattr(scvi_causal, "__version__", "99.0")
    with pytest.raises(ValueError, match="version='.*' there, '99.0' now"):
        benchmark.run(small, "unseen", "ControlMean", out=out, **FAST)


def test_failures_stay_until_they_are_retried(small, tmp_path, toys, fits):
    out, cure = tmp_path / "out", {"progress": False}
    models = {"bad": (toys.Shift, {"diary": str(fits), "trouble": "raise"}), "ControlMean": "ControlMean"}
    first = benchmark.run(small, models=models, out=out, **FAST | cure)
    bad = first.results[first.results["model"] == "bad"]
    assert set(bad["status"]) == {"failed"}
    assert set(bad["error"]) == {"ValueError: this model cannot"}
    assert bad["mse"].isna().all()
    assert first.results.loc[first.results["model"] == "ControlMean", "status"].eq("ok").all()
    assert len(list((out / "tracebacks").iterdir())) == 2
    benchmark.run(small, models=models, out=out, **FAST)
    assert count(fits) == 2
    again = benchmark.run(small, models=models, out=out, retry_failed=True, **FAST)
    assert count(fits) == 4
    assert again.config["time"]["wall_s"] > 0
    same(first, again)


def test_a_crash_is_a_row(small, tmp_path, monkeypatch):
    """Whatever happens outside of the model, of a model's job and of the noise ceiling's."""
    real = _run.run_job

    def crash(screen, job):
        if job.fold.index == 1:
            raise MemoryError("no more")
        return real(screen, job)

    monkeypatch.setattr(_run, "run_job", crash)
    result = benchmark.run(small, models="ControlMean", out=tmp_path / "out", **FAST)
    for table in (result.results, result.ceiling):
        failed = table[table["fold"] == 1]
        assert set(failed["status"]) == {"failed"}
        assert set(failed["error"]) == {"MemoryError: no more"}
        assert failed["mse"].isna().all()
        assert table[table["fold"] == 0]["status"].eq("ok").all()
    assert list(result.results.columns)[:5] == ["model", "is_baseline", "task", "fold", "seed"]
    assert result.effects().loc[("ControlMean", 0, 1)].isna().all(axis=None)
    assert "failed" in result.table(populations="all")


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import anndata, toys
from pathlib import Path
from scvi_causal import benchmark
from scvi_causal.benchmark import _run

real = _run.run_job

def diary(screen, job):
    result = real(screen, job)
    with open({diary!r}, "a") as file:
        file.write(job.title + "\\n")
    return result

_run.run_job = diary
models = {{
    "first": (toys.Shift, {{"diary": {fits!r}}}),
    "second": (toys.Shift, {{"diary": {fits!r}, "trouble": {gate!r}, "factor": 0.5}}),
}}
adata = anndata.read_h5ad({data!r})
benchmark.run(adata, "unseen", models, out={out!r}, n_folds=2, report=False, progress=False)
"""


@pytest.mark.slow
def test_killed_in_the_middle(small, tmp_path, fits, toys):
    """SIGKILL while the second model fits; started again, nothing is computed twice and the table is the same."""
    gate, diary, data, out = (tmp_path / name for name in ("gate", "diary", "data.h5ad", "out"))
    small.write_h5ad(data)
    places = {"gate": gate, "diary": diary, "data": data, "out": out, "fits": fits, "here": HERE}
    script = textwrap.dedent(SCRIPT.format(**{name: str(path) for name, path in places.items()}))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while count(fits) < 2 and time.monotonic() < end:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    done = diary.read_text().splitlines()
    assert done == ["noise ceiling, fold 0, seed 0", "first, fold 0, seed 0"]
    partial = benchmark.load(out)
    assert list(partial.results["model"].unique()) == ["first"]
    assert partial.missing[:2] == [("noise ceiling", 0, 1), ("first", 0, 1)]
    assert len(partial.missing) == 4
    assert json.loads((out / "run.json").read_text())["runs"][0]["finished"] is None

    gate.touch()
    subprocess.run([sys.executable, "-c", script], check=True)
    titles = diary.read_text().splitlines()
    assert len(titles) == len(set(titles)) == 6
    assert count(fits) == 5  # four, and the one that was killed
    models = {
        "first": (toys.Shift, {"diary": str(fits)}),
        "second": (toys.Shift, {"diary": str(fits), "trouble": str(gate), "factor": 0.5}),
    }
    resumed = benchmark.load(out)
    assert resumed.missing == []
    same(resumed, benchmark.run(small, "unseen", models, out=tmp_path / "whole", **FAST))


# ---------------------------------------------------------------------- what is wrong is said before anything is done


def test_wrong_arguments(small, tmp_path):
    out = tmp_path / "out"
    for options, message in [
        ({"engine": "procesess"}, "Did you mean 'processes'"),
        ({"threads": 0}, "threads=0"),
        ({"seeds": []}, "seeds="),
        ({"seeds": [0, 0]}, "seeds="),
        ({"seeds": [0.5]}, "seeds="),
        ({"task": "unsen"}, "Did you mean 'unseen'"),
        ({"models": {"noise ceiling": "ControlMean"}}, "cannot be called 'noise ceiling'"),
        ({"size_factor_key": "librry"}, "library"),
        ({"control_category": "NT"}, "NT"),
    ]:
        with pytest.raises(ValueError, match=message):
            benchmark.run(small, **{"models": "ControlMean", "out": out, **FAST, **options})
    assert not out.exists()


def test_a_folder_without_a_benchmark(tmp_path):
    with pytest.raises(ValueError, match=r"has no run.json"):
        benchmark.load(tmp_path)


def test_a_run_without_a_finished_model_says_so(small, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "run_job", stop)
    with pytest.raises(KeyboardInterrupt):
        benchmark.run(small, models="ControlMean", out=tmp_path / "out", **FAST)
    result = benchmark.load(tmp_path / "out")
    assert len(result.missing) == 4
    with pytest.raises(ValueError, match=r"No job of a model is done .*'ControlMean'"):
        result.table()


def test_call_for_the_report(small, tmp_path):
    result = benchmark.run(small, models=["ControlMean"], out=tmp_path / "out", seeds=(1,), **FAST)
    text = "scvi_causal.benchmark.run(adata, models=['ControlMean'], n_folds=2, seeds=[1])"
    assert result.config["command"] == text
    assert str(tmp_path) not in (tmp_path / "out" / "run.json").read_text()


def test_commit_is_that_of_the_library(monkeypatch, tmp_path):
    import scvi_causal

    found = _origin.commit()
    if found is not None:  # in a checkout
        assert found.split()[0].isalnum()
    monkeypatch.setattr(scvi_causal, "__file__", str(tmp_path / "__init__.py"))
    assert _origin.commit() is None
    monkeypatch.setenv("PATH", "")
    assert _origin.commit() is None


def test_crash_of_the_ceiling_has_its_columns(screen):
    from scvi_causal.benchmark import Task
    from scvi_causal.benchmark._folds import make_folds
    from scvi_causal.benchmark._job import CEILING, Job

    fold = make_folds(screen, Task("unseen", n_folds=2))[0]
    rows = _run.crashed(screen, Job(CEILING, None, fold), Crash("MemoryError: no more")).rows
    assert "is_baseline" not in rows
    assert rows["error"].eq("MemoryError: no more").all()
