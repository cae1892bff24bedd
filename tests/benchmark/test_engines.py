"""The same outcomes from every engine, whatever happens to a job or to its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from scvi_causal import benchmark
from scvi_causal.benchmark import ModelSpec, _engines, _workers
from scvi_causal.benchmark._engines import Crash, run_jobs
from scvi_causal.benchmark._job import COST_COLUMNS

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def screen():
    return {"x": np.random.default_rng(0).normal(size=(300, 40))}


def outcomes(*args, **kwargs):
    found = dict(run_jobs(*args, **kwargs))
    return [found[position] for position in range(len(found))]


def ray_or_skip():
    return pytest.importorskip("ray", reason='the engine "ray" is an extra')


def test_in_process(toys, screen):
    before = torch.get_num_threads()
    found = list(run_jobs(toys.describe, screen, [3, 4], threads=2))
    assert [position for position, _ in found] == [0, 1]
    assert [outcome["job"] for _, outcome in found] == [3, 4]
    assert {outcome["threads"] for _, outcome in found} == {2}
    assert {outcome["pid"] for _, outcome in found} == {os.getpid()}
    assert torch.get_num_threads() == before


TROUBLE = ["raise", "exit", "good"]


def check_trouble(raised, left, good):
    assert raised.error == "cannot" or raised.error.startswith("ValueError: this model")
    assert "misbehave" in raised.traceback
    assert left.error.startswith("SystemExit: 3")
    assert good == "good"


def test_trouble_in_process(toys, screen):
    check_trouble(*outcomes(toys.misbehave, screen, TROUBLE))


@pytest.mark.slow
def test_processes(toys, screen, monkeypatch, tmp_path):
    """The same numbers, a worker for every four jobs, and a worker that is killed costs one job."""
    monkeypatch.setattr(_workers, "JOBS_PER_WORKER", 4)
    jobs = [0, *TROUBLE, 1, "write", "kill", 2]
    first, *trouble, second, wrote, killed, third = outcomes(
        toys.misbehave, screen, jobs, engine="processes", n_workers=1, scratch=tmp_path
    )
    found, here = [first, second, third], outcomes(toys.describe, screen, range(3))
    assert [o["sum"] for o in found] == [o["sum"] for o in here]
    assert {o["threads"] for o in found} == {1}
    assert len({o["pid"] for o in found}) == 3
    check_trouble(*trouble)
    assert "SIGKILL" in killed.error
    assert "Out of memory?" in killed.error
    # what all jobs share is not to be changed
    assert "read-only" in wrote.error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ray(toys, screen):
    """On a Ray that runs already, with jobs whose code only this process knows where to find."""
    ray = ray_or_skip()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        jobs = [0, *TROUBLE, "write", "kill", 1]
        first, *trouble, wrote, killed, second = outcomes(toys.misbehave, screen, jobs, engine="ray", n_workers=2)
        assert ray.is_initialized()  # it was not ours to stop
    finally:
        ray.shutdown()
    here = outcomes(toys.describe, screen, range(2))
    assert [o["sum"] for o in (first, second)] == [o["sum"] for o in here]
    assert first["threads"] == 1
    assert first["pid"] != os.getpid()
    check_trouble(*trouble)
    assert killed.error.startswith("WorkerKilled")
    assert "read-only" in wrote.error


def test_no_such_engine(toys, screen):
    with pytest.raises(ValueError, match="engine='dask' is not one of 'inprocess', 'processes', 'ray'"):
        run_jobs(toys.describe, screen, [1], engine="dask")
    with pytest.raises(ValueError, match="n_workers=0"):
        run_jobs(toys.describe, screen, [1], n_workers=0)


def test_ray_that_is_not_there(toys, screen, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install \"scvi-causal\[ray\]\""):
        list(run_jobs(toys.describe, screen, [1], engine="ray"))


def test_work_that_cannot_travel(toys, screen):
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        list(run_jobs(toys.not_importable(), screen, [1], engine="processes"))


def test_no_jobs_start_no_worker(toys, screen):
    assert list(run_jobs(toys.describe, screen, [], engine="processes")) == []


def test_a_screen_that_is_mapped(tmp_path):
    data = {"x": np.arange(5.0), "none": np.zeros((0, 3)), "name": "screen", "y": np.arange(7, dtype=np.int8)}
    _workers.dump(data, tmp_path / "screen")
    loaded = _workers.load(tmp_path / "screen")
    assert loaded["name"] == "screen"
    for name in ("x", "none", "y"):
        np.testing.assert_array_equal(loaded[name], data[name])
        assert loaded[name].dtype == data[name].dtype
    assert not loaded["x"].flags.writeable
    assert loaded["y"].ctypes.data % 64 == 0


def test_how_a_process_ended():
    assert "(SIGKILL)" in _engines.killed_message(-signal.SIGKILL)
    assert "exit status 7" in _engines.killed_message(7)
    assert "ended without a result" in _engines.killed_message(None)


# ---------------------------------------------------------------------- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_runs_agree(adata, tmp_path, engine):
    """Closed forms, a network that is trained, and the noise ceiling, in another order and in other processes."""
    if engine == "ray":
        ray = ray_or_skip()
    models = {"SCCVAE": ModelSpec("SCCVAE", train={"max_epochs": 2}), "PerturbedMean": "PerturbedMean"}
    keep = adata.obs["perturbation"].isin(["control", "G00", "G01"])
    options = {"adata": adata[keep, :20].copy(), "task": "seen", "models": models, "report": False, "progress": False}
    here = benchmark.run(**options, out=tmp_path / "here")
    there = benchmark.run(**options, out=tmp_path / "there", engine=engine, n_workers=2)
    assert here.results["status"].eq("ok").all()
    for name in ("results", "ceiling"):
        one, two = (getattr(result, name).drop(columns=list(COST_COLUMNS)) for result in (here, there))
        pd.testing.assert_frame_equal(one, two, check_exact=True)
    pd.testing.assert_frame_equal(here.effects(), there.effects(), check_exact=True)
    assert not list((tmp_path / "there").glob(".shared-*"))
    if engine == "ray":
        assert not ray.is_initialized()  # it was ours to stop


@pytest.mark.slow
def test_a_killed_worker_is_a_row(adata, tmp_path, toys):
    fits = tmp_path / "fits"
    fits.mkdir()
    models = {name: (toys.Shift, {"diary": str(fits), "trouble": t}) for name, t in (("bad", "kill"), ("good", ""))}
    options = {"engine": "processes", "n_workers": 1, "report": False, "progress": False}
    result = benchmark.run(adata, "seen", models, out=tmp_path / "out", **options)
    bad, good = (result.results[result.results["model"] == name] for name in ("bad", "good"))
    assert set(bad["status"]) == {"failed"}
    assert bad["error"].str.contains("SIGKILL").all()
    assert good["status"].eq("ok").all()
    assert len(list(fits.iterdir())) == 2


# ---------------------------------------------------------------------- interrupts: the run is a process of its own

SCRIPT = """
import signal, sys, time
# a test run in the background of a shell hands on that Ctrl-C is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {here!r})
import toys
from scvi_causal.benchmark._engines import run_jobs

def swallow(screen, job):
    try:
        return toys.slow(screen, job)
    except KeyboardInterrupt:
        return "half a model"

if __name__ == "__main__":
    work = toys.slow if {engine!r} == "processes" else swallow
    try:
        for _, outcome in run_jobs(work, {folder!r}, ["first", "last"], engine={engine!r}, n_workers=1):
            print("done:", outcome, flush=True)
    except KeyboardInterrupt:
        print("stopped")
"""


def start(tmp_path, engine, script=SCRIPT):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script.format(here=str(HERE), engine=engine, folder=str(tmp_path))))
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([sys.executable, str(path)], **options)


def wait_for(folder, pattern, seconds=60):
    """Number at the end of the first file that appears under this pattern."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = list(folder.glob(pattern))
        if found:
            return int(found[0].name.rpartition("-")[2])
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} after {seconds} seconds")


def gone(pid, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inprocess", "processes"])
def test_ctrl_c_stops_all_of_it(tmp_path, engine):
    process = start(tmp_path, engine)
    worker, child = wait_for(tmp_path, "last-*"), wait_for(tmp_path, "child-*")
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()  # nothing of a test that failed is left running
    assert out.splitlines() == ["done: first", "stopped"], err
    assert "Traceback" not in err
    assert gone(worker)
    assert gone(child)


@pytest.mark.slow
def test_workers_leave_with_the_run(tmp_path):
    process = start(tmp_path, "processes")
    worker, child = wait_for(tmp_path, "last-*"), wait_for(tmp_path, "child-*")
    process.kill()
    process.communicate(timeout=60)
    assert gone(worker)
    assert gone(child)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(tmp_path):
    process = start(tmp_path, "processes", SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "must be called under `if __name__" in err


def test_crash_is_a_value():
    assert Crash("a") == Crash("a", "")
