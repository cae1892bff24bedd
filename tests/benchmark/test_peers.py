"""The exchange of files with foreign models, with a script that any interpreter runs in place of a peer's."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from scvi_causal import metrics
from scvi_causal.benchmark import ModelSpec, Task
from scvi_causal.benchmark._folds import make_folds
from scvi_causal.benchmark._job import Job, run_job
from scvi_causal.benchmark._screen import Screen

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
# adds up the mean effects of the tokens; options make it misbehave
FAKE = """
import os, sys, time
import numpy as np
from _exchange import serve

def fit(train, job):
    print("a peer prints")
    if "burn" in job.options:
        end = time.process_time() + job.options["burn"]
        while time.process_time() < end: pass
    if job.options.get("fail") == "fit":
        raise ValueError("no such thing in " + os.getcwd())
    if job.options.get("fail") == "die":
        os._exit(3)
    x, labels = train.X.toarray(), train.obs["perturbation"].to_numpy(dtype=str)
    control = x[labels == "ctrl"].mean(0)
    means = {label: x[labels == label].mean(0) - control for label in set(labels) if "+" not in label}
    return {"means": means, "seen": sorted(set(train.obs["context"])), "features": job.features, "go": job.gene2go}

def predict(model, source, targets, job):
    if job.options.get("fail") == "predict":
        raise ZeroDivisionError("nothing to divide by")
    x = source.X.toarray()
    return {t: x + sum(model["means"][token] for token in t.split("+")) for t in targets}

serve(fit, predict)
"""


@pytest.fixture(scope="module")
def foreign():
    """The module of the predictor, which is no package."""
    sys.path.insert(0, str(PEERS))
    try:
        import predictor
    finally:
        sys.path.remove(str(PEERS))
    return predictor


@pytest.fixture
def make(foreign, tmp_path):
    """A predictor with the script above and this interpreter."""
    made = []
    script = tmp_path / "run_fake.py"
    script.write_text(FAKE)

    def make(peer="cpa", **options):
        keys = {"size_factor_key": "library", "python": sys.executable, "script": script}
        made.append(foreign.ForeignPredictor(peer, **{**keys, **options}))
        return made[-1]

    yield make
    for predictor in made:
        predictor.close()


@pytest.fixture(scope="module")
def training(adata):
    """Cells without the combination G00+G01, with control cells to start from."""
    train = adata[(adata.obs["perturbation"] != "G00+G01").to_numpy()].copy()
    train.obs["split"] = "train"
    return train, adata[(adata.obs["perturbation"] == "control").to_numpy()][:20].copy()


def test_a_fake_peer_predicts_what_it_should(make, training):
    train, source = training
    predictor = make()
    predictor.fit(train.copy())
    x = metrics.log1p_normalize(train.X, train.obs["library"]).toarray()
    labels = train.obs["perturbation"].to_numpy(dtype=str)
    effects = {t: x[labels == t].mean(0) - x[labels == "control"].mean(0) for t in ("G00", "G01")}
    start = metrics.log1p_normalize(source.X, source.obs["library"]).toarray()
    for targets in (["G00"], ["G00+G01", "G01"]):  # asked twice, trained once
        predicted = predictor.predict(source, targets)
        assert predicted.var_names.equals(train.var_names)
        for target in targets:
            rows = (predicted.obs["perturbation"] == target).to_numpy()
            expected = start + sum(effects[token] for token in target.split("+"))
            np.testing.assert_allclose(predicted.X[rows], expected, atol=1e-4)


def test_what_is_written_is_what_old_readers_know(make, training):
    train, _ = training
    train = train.copy()
    train.obs["perturbation"] = train.obs["perturbation"].astype(str).str.replace("+", "|").replace("control", "NT")
    predictor = make(control_category="NT", perturbation_separator="|", context_key="cell_type")
    written = predictor._exchanged(train)
    assert {"ctrl", "G00", "G02+G03"} <= set(written.obs["perturbation"])
    assert set(written.obs["context"]) == set(train.obs["cell_type"].astype(str))
    assert all(written.obs[name].dtype == object for name in ("perturbation", "context", "split"))
    assert written.obs_names.dtype == written.var_names.dtype == object
    np.testing.assert_array_equal(written.layers["counts"].toarray(), np.asarray(train.X.todense()))
    with pytest.raises(ValueError, match=r"'a\+b' of 'a\+b\|c' cannot be passed on"):
        predictor._canonical("a+b|c")


@pytest.mark.parametrize(
    ("peer", "options", "reasons"),
    [
        ("cpa", {}, {"G00+G01": "", "new": "new: no training cells", "G00+G01+G02": "at most two tokens"}),
        ("scgen", {}, {"G00": "", "G00+G01": "no combination without cells", "G00+G03": ""}),
        ("scouter", {"features_key": "features"}, {"new": "", "G00+G09": "G09: no features"}),
    ],
)
def test_peers_say_what_they_cannot_predict(make, training, peer, options, reasons):
    train = training[0].copy()
    train.uns["features"] = pd.DataFrame({"f": [1.0, 2.0, 3.0]}, ["G00", "G01", "new"])
    predictor = make(peer, **options)
    predictor.fit(train)
    answer = predictor.can_predict(list(reasons))
    assert answer["predictable"].to_dict() == {target: not reason for target, reason in reasons.items()}
    assert all(reason in answer["reason"][target] for target, reason in reasons.items())


def test_failures_are_told_and_leave_nothing_behind(make, training):
    train, source = training
    for fail, message in (
        ("fit", "cpa: ValueError: no such thing in FOLDER"),
        ("die", "cpa: its process ended with code 3"),
    ):
        predictor = make(options={"fail": fail})
        with pytest.raises(RuntimeError, match=message) as error:
            predictor.fit(train.copy())
        assert "a peer prints" in error.value.__notes__[0]
        assert not predictor._folder.exists()
    with pytest.raises(ValueError, match="call fit first"):
        predictor.predict(source, ["G00"])
    predictor = make(options={"fail": "predict"})
    predictor.fit(train.copy())
    with pytest.raises(RuntimeError, match="ZeroDivisionError: nothing to divide by"):
        predictor.predict(source, ["G00"])


def test_the_process_ends_with_its_predictor(make, training):
    predictor = make()
    predictor.fit(training[0].copy())
    child, folder = psutil.Process(predictor._process.pid), predictor._folder
    assert child.is_running()
    predictor.close()
    assert not child.is_running()
    assert not folder.exists()


def test_a_peer_whose_input_closes_ends_in_the_middle_of_training(foreign, make, training):
    predictor = make(options={"burn": 60})
    write = predictor._start

    def start_and_hang_up(command):
        write(command)
        predictor._process.stdin.close()

    predictor._start = start_and_hang_up
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="ended with code 0"):
        predictor.fit(training[0].copy())
    assert time.monotonic() - started < 50


def test_peers_that_are_not_installed_say_how(foreign, tmp_path, monkeypatch, training):
    monkeypatch.setenv("SCVI_CAUSAL_PEERS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"install\.sh gears") as error:
        foreign.ForeignPredictor("gears", size_factor_key="library").fit(training[0].copy())
    assert str(tmp_path) not in str(error.value)  # the message is printed in reports
    (tmp_path / "gears").mkdir()
    (tmp_path / "gears" / ".installed").touch()
    assert foreign.interpreter("gears") == tmp_path / "gears" / "bin" / "python"
    with pytest.raises(ValueError, match="no peer 'gear'"):
        foreign.ForeignPredictor("gear")


def test_peers_run_on_the_cpu_with_their_threads_and_packages(foreign, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "ours")
    given = foreign._environment(1)
    assert given["PYTHONPATH"] == str(PEERS / "scripts")
    assert given["OMP_NUM_THREADS"] == "1"
    assert given["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["PYTHONPATH"] == "ours"


def test_in_the_table_of_a_benchmark(foreign, tmp_path, adata):
    script = tmp_path / "run_fake.py"
    script.write_text(FAKE)
    screen = Screen.build(adata, size_factor_key="library")
    fold = make_folds(screen, Task("combination", holdout=("G00+G01", "G02+G03")))[0]
    kwargs = {"peer": "cpa", "size_factor_key": "library", "python": sys.executable, "script": script}
    done = run_job(screen, Job("fake", ModelSpec(foreign.ForeignPredictor, kwargs | {"options": {"burn": 1.0}}), fold))
    assert done.error == ""
    assert done.rows["status"].tolist() == ["ok", "ok"]
    assert (done.rows["pearson_effect"] > 0.5).all()
    assert done.rows["fit_cpu_s"].iloc[0] > 1.0  # of a process that goes on to predict
    failed = run_job(
        screen, Job("fake", ModelSpec(foreign.ForeignPredictor, kwargs | {"options": {"fail": "fit"}}), fold)
    )
    assert failed.rows["error"].tolist() == ["RuntimeError: cpa: ValueError: no such thing in FOLDER"] * 2
    assert "a peer prints" in failed.traceback
