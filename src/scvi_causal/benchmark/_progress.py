"""How far a run is: a bar for people, lines for logs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scvi_causal.data._messages import plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._job import Job, JobResult


class Progress:
    """Shows finished jobs; use as a context.

    Parameters
    ----------
    shown
        ``True``: a bar, where somebody can see it. ``False``: nothing. A function: called with lines of text.
    n_jobs, n_found
        Jobs of the run, and those that were done before.
    """

    def __init__(self, shown: bool | Callable[[str], None], n_jobs: int, n_found: int) -> None:
        self._say = shown if callable(shown) else None
        self._n_jobs, self._n_done, self._n_failed = n_jobs, n_found, 0
        self._found = n_found
        self._bar = self._make_bar() if shown is True else None

    def _make_bar(self):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        if not (console.is_terminal or console.is_jupyter):
            return None
        text = TextColumn("{task.description}", table_column=None)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), text)
        return Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Progress:
        self._started = time.perf_counter()
        found = f", {self._found:,} of them done before" if self._found else ""
        self._tell(f"{plural(self._n_jobs, 'job')}{found}")
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._n_jobs, completed=self._n_done)
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, job: Job, result: JobResult) -> None:
        """A job is done."""
        self._n_done += 1
        self._n_failed += result.status == "failed"
        trouble = f": {result.status}: {_short(result.error)}" if result.status != "ok" else ""
        self._tell(f"[{self._n_done}/{self._n_jobs}] {job.title}{trouble}", in_bar=bool(trouble))
        if self._bar is not None:
            failed = f", {self._n_failed} failed" if self._n_failed else ""
            self._bar.update(self._task, advance=1, description=f"{job.title}{failed}")

    def _tell(self, line: str, in_bar: bool = True) -> None:
        if self._say is not None:
            self._say(line)
        elif self._bar is not None and in_bar:
            self._bar.console.print(line, markup=False, highlight=False)


def _short(error: str, limit: int = 160) -> str:
    return error if len(error) <= limit else f"{error[: limit - 3]}..."
