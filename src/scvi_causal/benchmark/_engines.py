"""Where jobs run: in this process, in processes of this machine, or on Ray. The results are the same to the last bit.

An engine is a generator that takes ``work(screen, job)``, the screen and the jobs, and yields ``(position, outcome)`` in the
order in which jobs end. The outcome is what ``work`` returned, or a :class:`Crash`: no job ends the run.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import re
import signal
import sys
import threading
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from scvi_causal.data._messages import did_you_mean

from ._resources import fixed_threads, quick_garbage_collection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Work = Callable[[Any, Any], Any]

ENGINES = ("inprocess", "processes", "ray")
# a worker is replaced after so many jobs, so that what models leave behind cannot pile up
JOBS_PER_WORKER = 25


@dataclass(frozen=True)
class Crash:
    """A job that gave no result: its process died, or something outside of the model raised."""

    error: str
    """One line: ``"ValueError: ..."``, or how the process ended."""
    traceback: str = ""


def run_jobs(
    work: Work,
    screen: Any,
    jobs: Sequence[Any],
    *,
    engine: str = "inprocess",
    n_workers: int = 2,
    threads: int = 1,
    scratch: Path | None = None,
) -> Iterator[tuple[int, Any]]:
    """Run all jobs and yield ``(position, outcome)`` as they end.

    Parameters
    ----------
    work
        ``work(screen, job)``; a function of a module, so that other processes find it. Must not change the screen.
    screen
        What all jobs share. Other processes get it once, and map it instead of copying it: its arrays are read-only there.
    jobs
        The jobs, each picklable.
    engine
        One of :data:`ENGINES`.
    n_workers
        Jobs at a time; ``"inprocess"`` runs one after the other.
    threads
        Threads of each job.
    scratch
        Folder for the file that processes share the screen by; that of the system for temporary files by default.

    Raises
    ------
    ValueError
        If there is no such engine, or a job cannot be sent to another process.
    ImportError
        If Ray is asked for and not installed.
    RuntimeError
        If worker processes cannot start.
    """
    check_engine(engine, n_workers, threads)
    if engine == "inprocess":
        return _inprocess(work, screen, jobs, threads)
    if engine == "processes":
        from ._workers import run_in_processes

        return run_in_processes(work, screen, jobs, n_workers, threads, scratch)
    return _ray(work, screen, jobs, n_workers, threads)


def check_engine(engine: str, n_workers: int, threads: int) -> None:
    """Raise what is wrong with the engine before anything is computed."""
    if engine not in ENGINES:
        raise ValueError(
            f"engine={engine!r} is not one of {', '.join(map(repr, ENGINES))}.{did_you_mean(engine, ENGINES)}"
        )
    for name, value in (("n_workers", n_workers), ("threads", threads)):
        if value < 1:
            raise ValueError(f"{name}={value} is not at least 1.")
    if engine == "ray":
        import_ray()


def attempt(work: Work, screen: Any, job: Any, threads: int) -> Any:
    """Do one job, in whatever process this is; what it raises becomes a :class:`Crash`."""
    try:
        with fixed_threads(threads):
            return work(screen, job)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # one job must not end the others
        return Crash(traceback.format_exception_only(error)[-1].strip(), traceback.format_exc())


def _inprocess(work: Work, screen: Any, jobs: Sequence[Any], threads: int) -> Iterator[tuple[int, Any]]:
    with quick_garbage_collection(), _interrupts() as interrupted:
        for position, job in enumerate(jobs):
            outcome = attempt(work, screen, job, threads)
            if interrupted.is_set():
                raise KeyboardInterrupt
            yield position, outcome


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Notice Ctrl-C even where a trainer catches it and hands back a model that is trained by half."""
    seen = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield seen
        return

    def note(number, frame):
        seen.set()
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------- Ray


def import_ray() -> Any:
    """Import Ray, or say how to install it."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            'engine="ray" needs Ray: pip install "scvi-causal[ray]". Without it, engine="processes" runs jobs beside each '
            "other on this machine."
        ) from error
    return ray


def _ray(work: Work, screen: Any, jobs: Sequence[Any], n_workers: int, threads: int) -> Iterator[tuple[int, Any]]:
    ray = import_ray()
    with _ray_session(ray, n_workers * threads):
        gpus = ray.cluster_resources().get("GPU", 0.0)
        resources = {"num_cpus": threads, "num_gpus": min(1.0, gpus / n_workers)}
        # nothing is computed twice: a job that killed its worker would kill the next one too
        task = ray.remote(max_retries=0, max_calls=JOBS_PER_WORKER, **resources)(_attempt_on_ray)
        shared, path = ray.put(screen), list(sys.path)
        waiting = iter(enumerate(packed(work, jobs, ray.cloudpickle.dumps)))
        running: dict[Any, int] = {}
        try:
            while True:
                # as many as there are workers, so that what an interrupt throws away is little
                for position, job in islice(waiting, n_workers - len(running)):
                    running[task.remote(job, shared, path, threads)] = position
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                position = running.pop(done[0])
                yield position, _fetch(ray, done[0])
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _attempt_on_ray(job: bytes, screen: Any, path: list[str], threads: int) -> Any:
    """As :func:`attempt_packed`, for which a fresh worker learns where modules lie, and sets its libraries aside for good."""
    sys.path.extend(folder for folder in path if folder not in sys.path)
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
    return attempt_packed(job, screen, threads)


def _fetch(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.OutOfMemoryError:
        return Crash("WorkerKilled: Ray ended the worker because the machine ran out of memory.")
    except ray.exceptions.WorkerCrashedError:
        return Crash(killed_message(None))
    except ray.exceptions.RayError as error:
        told = re.sub("\x1b\\[[0-9;]*m", "", str(error)).strip()  # Ray colours its tracebacks
        return Crash(f"{type(error).__name__}: {told.splitlines()[-1]}", told)


@contextmanager
def _ray_session(ray: Any, n_cpus: int) -> Iterator[None]:
    """Use the Ray that runs, or start one on this machine, without a network, and stop it at the end."""
    if ray.is_initialized():
        yield
        return
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):  # else there is a cluster to connect to, which knows its CPUs
        options |= {"num_cpus": n_cpus, "_node_ip_address": "127.0.0.1"}
    with _environment(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0"):
        ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for what is started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def killed_message(exit_code: int | None) -> str:
    """How a worker process ended that was not asked to."""
    how = "ended without a result"
    if exit_code is not None and exit_code < 0:
        name = f"signal {-exit_code}"
        with suppress(ValueError):
            name = signal.Signals(-exit_code).name
        how = f"was killed ({name})"
    elif exit_code is not None:
        how = f"ended with exit status {exit_code}"
    return f"WorkerKilled: the process of the job {how}. Out of memory? Try fewer workers."


def packed(work: Work, jobs: Sequence[Any], dumps: Callable[[Any], bytes] = pickle.dumps) -> list[bytes]:
    """Each job as bytes for :func:`attempt_packed` in another process.

    Raises
    ------
    ValueError
        If one cannot be sent; names it.
    """
    found = []
    for job in jobs:
        try:
            found.append(dumps((work, job)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            name = getattr(job, "model", job)
            raise ValueError(
                f"{name!r} cannot be sent to another process ({error}). Define what it uses at the top of a module that "
                'can be imported, not inside a function or a notebook; or use engine="inprocess".'
            ) from error
    return found


def attempt_packed(job: bytes, screen: Any, threads: int) -> Any:
    """As :func:`attempt`, of a job that came as bytes."""
    try:
        work, unpacked = pickle.loads(job)
    except Exception as error:  # noqa: BLE001  # whatever the import of a foreign model raises
        message = f"{type(error).__name__}: {error} (the process of the job cannot import the model)"
        return Crash(message, traceback.format_exc())
    return attempt(work, screen, unpacked, threads)
