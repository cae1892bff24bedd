"""Worker processes of this machine: spawned, replaced after some jobs, and expected to die at any time."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ._engines import JOBS_PER_WORKER, Crash, attempt_packed, killed_message, packed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.process import BaseProcess

    from ._engines import Work

# numerical libraries are fastest, and the same everywhere, on arrays that start at such an address
_ALIGNMENT = 64
SCRATCH = ".shared-"
_READY = "ready"


def run_in_processes(
    work: Work, screen: Any, jobs: Sequence[Any], n_workers: int, threads: int, scratch: Path | None = None
) -> Iterator[tuple[int, Any]]:
    """Run jobs in ``n_workers`` processes; see :func:`scvi_causal.benchmark._engines.run_jobs`.

    Processes are spawned, not forked: threads and locks of this process do not survive a fork. Each takes one job at a time,
    and :data:`JOBS_PER_WORKER` in its life.
    """
    sent = packed(work, jobs)
    if not sent:
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=scratch, ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "screen"
        dump(screen, file)
        pool = _Pool(file, sent, min(n_workers, len(sent)), threads)
        try:
            yield from pool.outcomes()
        finally:
            pool.stop()


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    position: int | None = None
    """Of the job it works on."""
    n_jobs: int = 0
    is_ready: bool = False


class _Pool:
    """The side of this process: hands out jobs, takes in results, notices deaths."""

    def __init__(self, file: Path, packed: list[bytes], n_workers: int, threads: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._file, self._packed, self._n_workers, self._threads = file, packed, n_workers, threads
        self._next = 0
        self._workers: list[_Worker] = []

    def outcomes(self) -> Iterator[tuple[int, Any]]:
        while True:
            # a worker on its way is enough for a job that is left
            n_busy = sum(worker.position is not None for worker in self._workers)
            wanted = min(self._n_workers, n_busy + len(self._packed) - self._next)
            while len(self._workers) < wanted:
                self._workers.append(self._start())
            if not self._workers:
                return
            by_event = {worker.connection: worker for worker in self._workers}
            by_event |= {worker.process.sentinel: worker for worker in self._workers}
            for worker in {id(by_event[event]): by_event[event] for event in wait(list(by_event))}.values():
                yield from self._attend(worker)

    def _start(self) -> _Worker:
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(there, str(self._file), self._threads), name="scvi-causal-worker"
        )
        process.start()
        there.close()
        return _Worker(process, here)

    def _attend(self, worker: _Worker) -> Iterator[tuple[int, Any]]:
        """Take what a worker says; nothing more will come from one that has ended."""
        try:
            message = worker.connection.recv() if worker.connection.poll() else None
        except (EOFError, OSError):  # it died, maybe in the middle of a message
            message = None
        if message is None:
            yield from self._bury(worker)
            return
        if message == _READY:
            worker.is_ready = True
        else:
            position, worker.position = worker.position, None
            yield position, message
        self._give(worker)

    def _bury(self, worker: _Worker) -> Iterator[tuple[int, Any]]:
        self._end(worker)
        exit_code = worker.process.exitcode
        if not worker.is_ready:
            raise RuntimeError(
                f"A worker process ended (exit status {exit_code}) before it could take a job; what it printed says why. In "
                'a script, benchmark.run must be called under `if __name__ == "__main__":`, because worker processes read '
                "the script too."
            )
        if worker.position is not None:
            yield worker.position, Crash(killed_message(exit_code))

    def _give(self, worker: _Worker) -> None:
        """Hand the next job to a free worker, or send it home."""
        if self._next == len(self._packed) or worker.n_jobs == JOBS_PER_WORKER:
            self._end(worker)
            return
        with suppress(OSError):  # it died just now, which its sentinel tells next; the job goes to another one
            worker.connection.send_bytes(self._packed[self._next])
            worker.position, worker.n_jobs = self._next, worker.n_jobs + 1
            self._next += 1

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join(timeout=5)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()

    def stop(self) -> None:
        """End all workers, whatever they do."""
        for worker in list(self._workers):
            _kill_children(worker.process.pid)
            worker.process.kill()
            self._end(worker)


# ---------------------------------------------------------------------- the side of the worker


def _serve(connection: Connection, file: str, threads: int) -> None:
    """Do jobs until the other side hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one decides
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    screen = load(Path(file))
    gc.collect()
    gc.freeze()
    connection.send(_READY)
    while True:
        try:
            job = connection.recv_bytes()
        except EOFError:
            return
        connection.send(attempt_packed(job, screen, threads))


def _leave_with_parent() -> None:
    """End this process when the one that started it is gone, killed perhaps: nobody would take the results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        _kill_children(os.getpid())
        os._exit(1)


def _kill_children(pid: int) -> None:
    """End what a process has started: a foreign model may run in a process of its own."""
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            child.kill()


# ---------------------------------------------------------------------- a screen that processes share


def dump(data: Any, path: Path) -> None:
    """Write an object to a file from which :func:`load` maps its arrays instead of reading them.

    The memory is then shared by all processes that load it, and the arrays are read-only.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(data, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    starts, end = [], 0
    for view in views:
        starts.append(end)
        end += -(-view.nbytes // _ALIGNMENT) * _ALIGNMENT
    with path.open("wb") as file:
        for start, view in zip(starts, views, strict=True):
            file.seek(start)
            file.write(view)
        file.truncate(max(end, 1))  # an empty file cannot be mapped
    spans = [(start, view.nbytes) for start, view in zip(starts, views, strict=True)]
    path.with_suffix(".head").write_bytes(pickle.dumps((head, spans), protocol=5))


def load(path: Path) -> Any:
    """Read what :func:`dump` wrote."""
    head, spans = pickle.loads(path.with_suffix(".head").read_bytes())
    with path.open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return pickle.loads(head, buffers=[mapped[start : start + size] for start, size in spans])
