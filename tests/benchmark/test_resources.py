"""Costs of a job: what is counted, for which phase, and what is put back afterwards."""

from __future__ import annotations

import gc
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from scvi_causal.benchmark._resources import Meter, fixed_threads, quick_garbage_collection

MB = 1_000_000


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_phases_are_told_apart():
    with Meter() as meter:
        with meter.phase("fit"):
            burn(0.1)
        time.sleep(0.1)
        with meter.phase("predict"):
            time.sleep(0.1)
        with meter.phase("fit"):
            burn(0.1)
    usage = meter.usage
    assert 0.2 <= usage.cpu_s("fit") < 0.4
    assert usage.cpu_s("predict") < 0.08
    assert usage.cpu_s("score") == 0
    assert 0.3 <= usage.phase_wall_s("fit", "predict") < usage.wall_s - 0.09


def test_peak_is_that_of_the_phase():
    with Meter() as meter:
        with meter.phase("fit"):
            block = np.ones(60 * MB // 8)
            time.sleep(0.1)
            del block
        with meter.phase("predict"):
            block = np.ones(20 * MB // 8)
            del block
            time.sleep(0.1)
        with meter.phase("score"):
            time.sleep(0.1)
    assert meter.usage.peak_memory_mb("fit") == pytest.approx(60, abs=10)
    assert meter.usage.peak_memory_mb("fit", "predict") == meter.usage.peak_memory_mb("fit")
    assert meter.usage.peak_memory_mb("score") < 10
    assert meter.usage.peak_memory_mb() == 0


def hold(n_mb):
    """Small blocks, in a circle: freed only when garbage is collected, and given back only when the library is told to."""
    held = [bytearray(1000) for _ in range(n_mb * 1000)]
    held.append(held)


def peak_of(n_mb):
    with Meter() as meter, meter.phase("fit"):
        hold(n_mb)
    return meter.usage.peak_memory_mb("fit")


def test_peak_does_not_depend_on_what_ran_before():
    gc.disable()
    try:
        first, second = peak_of(50), peak_of(50)
    finally:
        gc.enable()
        gc.collect()
    assert first == pytest.approx(50, abs=10)
    assert second == pytest.approx(first, abs=5)


def test_memory_of_the_library_that_is_shared_does_not_count(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(30 * MB // 8))
    with Meter() as meter, meter.phase("fit"):
        assert np.load(tmp_path / "x.npy", mmap_mode="r").sum() == 30 * MB // 8
    assert meter.usage.peak_memory_mb("fit") < (10 if sys.platform == "linux" else 40)


def test_child_processes_count():
    code = "import time; t = time.process_time()\nx = bytearray(80_000_000)\nwhile time.process_time() < t + 1.5: pass"
    with Meter() as meter, meter.phase("fit"):
        subprocess.run([sys.executable, "-c", code], check=True)
    assert meter.usage.cpu_s("fit") >= 1.5
    assert meter.usage.peak_memory_mb("fit") > 70


def test_a_child_process_that_goes_on_counts_in_each_phase():
    code = "import time\nwhile input():\n    t = time.process_time() + 0.8\n    while time.process_time() < t: pass\n    print(flush=True)"
    with Meter() as meter:
        with meter.phase("fit"):
            child = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
            ask(child)
        with meter.phase("predict"):
            ask(child)
            child.communicate("\n")
    assert 0.7 < meter.usage.cpu_s("fit") < 1.2
    assert 0.7 < meter.usage.cpu_s("predict") < 1.2


def ask(child):
    child.stdin.write("go on\n")
    child.stdin.flush()
    assert child.stdout.readline() == "\n"


def test_phases_do_not_overlap():
    with Meter() as meter, meter.phase("fit"), pytest.raises(RuntimeError, match="'score' is inside"):
        meter.phase("score").__enter__()


def test_an_error_inside_ends_the_measurement():
    meter = Meter()
    with pytest.raises(ValueError, match="no"), meter, meter.phase("fit"):
        raise ValueError("no")
    assert not meter._thread.is_alive()
    assert meter.usage.wall_s > 0


def test_threads_are_fixed_and_put_back():
    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    torch_before, blas_before = torch.get_num_threads(), blas()
    with fixed_threads(1):
        assert torch.get_num_threads() == 1
        assert set(blas()) == {1}
        with fixed_threads(2):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
    assert (torch.get_num_threads(), blas()) == (torch_before, blas_before)
    with pytest.raises(ValueError, match="threads=0"), fixed_threads(0):
        pass


def test_objects_are_set_aside_only_for_a_while():
    before = gc.get_freeze_count()
    with quick_garbage_collection():
        assert gc.get_freeze_count() > 0
        with quick_garbage_collection():
            pass
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == before
