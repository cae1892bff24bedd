"""The folder of a run: whole files or none, and nothing in it is misread."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import psutil
import pytest

from scvi_causal.benchmark._job import JobResult
from scvi_causal.benchmark._store import Entry, Manifest, Store

GENES = ["a", "a", "HLA.B"]  # names need not be unique


def result(status="ok", value=1.0, **changes):
    rows = pd.DataFrame({"model": "m", "perturbation": ["A", "B"], "status": status, "r2": [value, np.nan]})
    index = pd.MultiIndex.from_tuples([("A", "T"), ("B", "T")], names=["perturbation", "context"])
    effects = pd.DataFrame(np.arange(6, dtype=np.float32).reshape(2, 3), index=index, columns=GENES)
    return JobResult("m", False, "seen", 0, 0, **{"rows": rows, "effects": effects, "status": status} | changes)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "run")
    made.prepare()
    return made


def entry(model="m", key="k", **changes):
    return Entry(key, model, **{"seed": 0, "fold": 0} | changes)


def test_what_is_written_is_read(store):
    first, second = entry(key="1"), entry(key="2", model="SCCVAE, GO + CollecTRI / x")
    store.write(first, result(warnings=["UserWarning: few cells"]))
    store.write(second, result("failed", error="ValueError: no", traceback="Traceback ...\nValueError: no", value=None))
    assert [store.status(e) for e in (first, second, entry(key="3"))] == ["ok", "failed", None]
    rows = store.read_rows([second, entry(key="3"), first])
    assert rows["r2"].tolist() == pytest.approx([np.nan, np.nan, 1.0, np.nan], nan_ok=True)
    assert rows["r2"].dtype == np.float64
    assert store.read_meta([first])[first]["warnings"] == ["UserWarning: few cells"]
    assert store.read_meta([entry(key="3")]) == {}
    notes = list((store.out / "tracebacks").iterdir())
    assert [path.name for path in notes] == ["SCCVAE_GO_CollecTRI_x-seed0-fold0-2.txt"]
    assert notes[0].read_text().endswith("ValueError: no")


def test_nothing_is_read_of_an_empty_folder(store):
    assert store.read_rows([entry()]).empty
    assert store.read_effects(entry()).empty
    assert store.read_manifest() is None


def test_effects(store):
    store.write(entry(), result())
    effects = store.read_effects(entry())
    pd.testing.assert_frame_equal(effects, result().effects)
    assert list(effects.columns) == GENES


def test_effects_of_no_population(store):
    nothing = result(effects=result().effects.iloc[:0])
    store.write(entry(), nothing)
    assert store.read_effects(entry()).shape == (0, 3)


def test_a_success_takes_the_traceback_of_a_failure_away(store):
    store.write(entry(), result("failed", traceback="Traceback"))
    assert list((store.out / "tracebacks").iterdir())
    store.write(entry(), result())
    assert not list((store.out / "tracebacks").iterdir())
    assert store.status(entry()) == "ok"


def test_half_a_file_is_not_read_and_goes_away(store, monkeypatch):
    """The process dies while the last file of a job is written: the job is not done."""
    import pyarrow.parquet as pq

    real = pq.write_table

    def die(table, path, **options):
        if "r2" in table.column_names:
            path.write_bytes(b"PAR1 half a")
            raise KeyboardInterrupt
        real(table, path, **options)

    monkeypatch.setattr(pq, "write_table", die)
    with pytest.raises(KeyboardInterrupt):
        store.write(entry(), result())
    assert store.status(entry()) is None
    assert store.read_rows([entry()]).empty
    assert store.read_effects(entry()).empty
    assert list(store.out.rglob("*.part"))
    (store.out / ".shared-left-over").mkdir()
    store.prepare()
    assert not list(store.out.rglob("*.part"))
    assert not list(store.out.glob(".shared-*"))


def test_manifest(store):
    manifest = Manifest({"task": "seen", "holdout": None}, [entry(), entry("n", "2", spec="s")], [{"command": "é"}])
    store.write_manifest(manifest)
    assert store.read_manifest() == manifest
    assert "é" in (store.out / "run.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"jobs": [{"name": 1}]}'])
def test_a_manifest_that_is_none(store, text):
    (store.out / "run.json").write_text(text)
    with pytest.raises(ValueError, match="is not that of a benchmark"):
        store.read_manifest()


def test_a_manifest_of_the_future(store):
    store.write_manifest(Manifest())
    held = json.loads((store.out / "run.json").read_text()) | {"format": 99}
    (store.out / "run.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match="has format 99"):
        store.read_manifest()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        Store(tmp_path / "file").read_manifest()


def test_one_run_at_a_time(store):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    lock = store.out / ".lock"
    lock.write_text(f"{other.pid} {psutil.Process(other.pid).create_time()}")
    with pytest.raises(ValueError, match=f"Another run, process {other.pid}, works on"), store.lock():
        pass
    other.communicate(b"\n")
    # its process is gone, so that the lock is one that a killed run has left
    with store.lock():
        assert lock.read_text().split()[0] == str(os.getpid())
    assert not lock.exists()


@pytest.mark.parametrize("text", ["", "1", "x y", "99999999 0.0"])
def test_a_lock_of_nobody(store, text):
    (store.out / ".lock").write_text(text)
    with store.lock():
        pass


def test_a_lock_is_lifted_by_an_error(tmp_path):
    store = Store(tmp_path / "new")
    with pytest.raises(KeyboardInterrupt), store.lock():
        raise KeyboardInterrupt
    assert not list(store.out.iterdir())
