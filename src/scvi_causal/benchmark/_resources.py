"""What a job costs: CPU-seconds, wall seconds and peak memory of its phases, with a fixed number of threads."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

# a peak that lasts shorter may be missed; at this rate sampling costs about 1 % of a CPU, which counts as the model's
INTERVAL = 0.025
# looking for child processes walks through all processes of the machine
CHILDREN_INTERVAL = 1.0
MB = 1e6


@dataclass
class Phase:
    """What one phase of a job took, summed over the times it was entered."""

    cpu_s: float = 0.0
    """CPU time of all threads of the process, and of its child processes."""
    wall_s: float = 0.0
    peak_memory_mb: float = 0.0
    """Highest memory above that at the start of the job, in 10^6 bytes; 0 if it never rose."""


@dataclass
class Usage:
    """Costs of a job by phase (``"fit"``, ``"predict"``, ``"score"``)."""

    wall_s: float = 0.0
    phases: dict[str, Phase] = field(default_factory=dict)

    def cpu_s(self, phase: str) -> float:
        """CPU-seconds of a phase; 0 for one that never was."""
        return self.phases.get(phase, Phase()).cpu_s

    def phase_wall_s(self, *phases: str) -> float:
        """Wall seconds of the phases together."""
        return sum(self.phases.get(phase, Phase()).wall_s for phase in phases)

    def peak_memory_mb(self, *phases: str) -> float:
        """Highest of the peaks of the phases."""
        return max((self.phases.get(phase, Phase()).peak_memory_mb for phase in phases), default=0.0)


class Meter:
    """Measures one job; use as a context, and its phases as contexts inside.

    CPU time is that of the whole process, and memory what is the process's own: pages that are mapped from files or shared
    with other processes (libraries; the data set, where an engine shares it) are left out where the system tells them
    apart, as Linux does. Child processes that a job starts are counted in both. Garbage of earlier jobs is collected and
    given back to the system first, so that the costs of a job do not depend on what ran before it.

    Notes
    -----
    What else runs in the process is counted too: the in-process engine measures a job only as long as nothing else
    computes beside it. Memory is sampled every 25 milliseconds, and not while a library holds Python's lock.

    Examples
    --------
    >>> from scvi_causal.benchmark._resources import Meter
    >>> with Meter() as meter, meter.phase("fit"):
    ...     total = sum(range(100_000))
    >>> meter.usage.cpu_s("fit") > 0
    True
    """

    def __init__(self) -> None:
        self.usage = Usage()
        self._process = psutil.Process()
        self._current: Phase | None = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._children: list[psutil.Process] = []
        self._looked = -float("inf")
        self._thread = threading.Thread(target=self._watch, name="scvi-causal-memory", daemon=True)

    def __enter__(self) -> Meter:
        gc.collect()
        _give_back_free_memory()
        self._before = {child.pid for child in self._find_children()}
        self._start_memory = self._memory()
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.usage.wall_s = time.perf_counter() - self._started
        self._stopped.set()
        self._thread.join()

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Count what happens inside for this phase; one phase at a time."""
        if self._current is not None:
            raise RuntimeError(f"phase {name!r} is inside another phase: phases follow each other.")
        phase = self.usage.phases.setdefault(name, Phase())
        wall, cpu = time.perf_counter(), self._cpu_seconds()
        self._current = phase
        try:
            yield phase
        finally:
            self._sample()
            self._current = None
            phase.cpu_s += self._cpu_seconds() - cpu
            phase.wall_s += time.perf_counter() - wall

    def _cpu_seconds(self) -> float:
        # a foreign model may fit and predict in one process that goes on between the phases; its time is told apart only if
        # it is known when a phase ends and the next begins
        self._look_for_children()
        return cpu_seconds() + sum(map(cpu_seconds_of, self._children))

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self._sample()

    def _sample(self) -> None:
        phase = self._current
        if phase is None:
            return
        with self._lock:
            above = (self._memory() - self._start_memory) / MB
            phase.peak_memory_mb = max(phase.peak_memory_mb, above)

    def _memory(self) -> int:
        if time.perf_counter() - self._looked > CHILDREN_INTERVAL:
            self._look_for_children()
        return own_memory(self._process) + sum(own_memory(child) for child in self._children)

    def _look_for_children(self) -> None:
        self._children = [child for child in self._find_children() if child.pid not in self._before]
        self._looked = time.perf_counter()

    def _find_children(self) -> list[psutil.Process]:
        try:
            return self._process.children(recursive=True)
        except psutil.Error:
            return []


def cpu_seconds() -> float:
    """CPU time of this process so far, child processes that have ended included."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def cpu_seconds_of(process: psutil.Process) -> float:
    """CPU time of another process and of its children that have ended; 0 if it has ended and was waited for."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)


def own_memory(process: psutil.Process) -> int:
    """Bytes of memory that are the process's own; 0 if it has ended."""
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return memory.rss - getattr(memory, "shared", 0)


def _give_back_free_memory() -> None:
    """Return what was freed to the system: the C library keeps it, and a job that reuses it would look small."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)


@contextmanager
def fixed_threads(n: int) -> Iterator[None]:
    """Let torch and the numerical libraries use ``n`` threads; what they used before is put back at the end.

    The order in which numbers are added depends on the number of threads, and with it the last bits of every result.

    Parameters
    ----------
    n
        Number of threads, at least 1.

    Raises
    ------
    ValueError
        If ``n`` is below 1.
    """
    import torch
    from threadpoolctl import threadpool_limits

    if n < 1:
        raise ValueError(f"threads={n} is not at least 1.")
    before = torch.get_num_threads()
    with threadpool_limits(limits=n):
        torch.set_num_threads(n)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def quick_garbage_collection() -> Iterator[None]:
    """Set aside the objects of the libraries, which no job frees: collecting the garbage of a job then takes milliseconds.

    Does nothing where objects are set aside already.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
