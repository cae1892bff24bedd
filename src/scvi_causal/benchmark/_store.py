"""The folder of a run: one Parquet file per finished job, and ``run.json``, which says what they are.

A job is done when its file is there. Files appear under their name in one step, after all of them is on the disk, so that a
run that is killed leaves whole files or none, and nothing is computed twice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ._workers import SCRATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ._job import Job, JobResult

FORMAT = 1
RUN_FILE = "run.json"
_JOBS, _EFFECTS, _TRACEBACKS = "jobs", "effects", "tracebacks"
_PART = ".part"
_LOCK = ".lock"
_META = b"scvi_causal"
EFFECT_LEVELS = ["perturbation", "context"]


@dataclass(frozen=True)
class Entry:
    """A job as ``run.json`` knows it.

    Attributes
    ----------
    key
        Stands for everything that the result depends on.
    model, seed, fold
        What it is.
    spec
        Hash of how the model is made; ``""`` for the noise ceiling.
    is_ceiling
        Whether it is the job of the noise ceiling.
    """

    key: str
    model: str
    seed: int
    fold: int
    spec: str = ""
    is_ceiling: bool = False

    @classmethod
    def of(cls, job: Job, fingerprint: str) -> Entry:
        """The entry of a job on the screen with this fingerprint."""
        spec = "" if job.spec is None else job.spec.digest()
        return cls(job.key(fingerprint), job.model, job.seed, job.fold.index, spec, job.is_ceiling)

    @property
    def stem(self) -> str:
        """Name of its files, which people can read too."""
        model = re.sub(r"[^A-Za-z0-9]+", "_", self.model).strip("_")[:40]
        return f"{model}-seed{self.seed}-fold{self.fold}-{self.key}"


@dataclass
class Manifest:
    """What ``run.json`` holds.

    Attributes
    ----------
    config
        What was asked of which data; see :attr:`scvi_causal.benchmark.BenchmarkResult.config`.
    jobs
        All jobs that belong to the tables.
    runs
        Every call that worked on the folder: command, versions, times.
    """

    config: dict[str, Any] = field(default_factory=dict)
    jobs: list[Entry] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)


class Store:
    """Reads and writes the folder of a run.

    Parameters
    ----------
    out
        The folder.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)

    def prepare(self) -> None:
        """Make the folder, and remove what a killed run has left half-written."""
        for name in (_JOBS, _EFFECTS, _TRACEBACKS):
            (self.out / name).mkdir(parents=True, exist_ok=True)
        for path in self.out.rglob(f"*{_PART}"):
            path.unlink(missing_ok=True)
        for path in self.out.glob(f"{SCRATCH}*"):
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs on this machine out of the folder; the lock of a process that is gone counts for nothing.

        Raises
        ------
        ValueError
            If another run works on the folder.
        """
        path, me = self.out / _LOCK, psutil.Process()
        other = _owner(path)
        if other is not None and other != me.pid:
            raise ValueError(
                f"Another run, process {other}, works on {self.out}: wait for it, or choose another folder."
            )
        self.out.mkdir(parents=True, exist_ok=True)
        _write_whole(path, lambda part: part.write_text(f"{me.pid} {me.create_time()}"))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    # ---------------------------------------------------------------------- run.json

    def read_manifest(self) -> Manifest | None:
        """What the folder holds; ``None`` if no run was there.

        Raises
        ------
        ValueError
            If ``run.json`` cannot be read, or other things lie in the folder.
        """
        path = self.out / RUN_FILE
        if not path.exists():
            if self.out.exists() and not self.out.is_dir():
                raise ValueError(f"{self.out} is a file; out is the folder of a run.")
            return None
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            jobs = [Entry(**entry) for entry in held["jobs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not that of a benchmark ({error}). Choose another folder.") from error
        if held.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {held.get('format')}, this version of scvi-causal reads {FORMAT}. Choose another folder."
            )
        return Manifest(held["config"], jobs, held["runs"])

    def write_manifest(self, manifest: Manifest) -> None:
        """Write ``run.json``."""
        jobs = [asdict(entry) for entry in manifest.jobs]
        held = {"format": FORMAT, "config": manifest.config, "runs": manifest.runs, "jobs": jobs}
        text = json.dumps(held, indent=1, ensure_ascii=False, allow_nan=False)
        _write_whole(self.out / RUN_FILE, lambda path: path.write_text(text + "\n", encoding="utf-8"))

    # ---------------------------------------------------------------------- jobs

    def status(self, entry: Entry) -> str | None:
        """``"ok"``, ``"failed"`` or ``"refused"``; ``None`` if the job is not done."""
        meta = self._meta(entry)
        return None if meta is None else meta["status"]

    def write(self, entry: Entry, result: JobResult) -> None:
        """Keep what came of a job; its table last, which makes it done."""
        effects = _effects_table(result.effects)
        _write_whole(self._path(_EFFECTS, entry), lambda path: pq.write_table(effects, path, compression="zstd"))
        notes = self._path(_TRACEBACKS, entry)
        notes.unlink(missing_ok=True)
        if result.traceback:
            notes.write_text(result.traceback, encoding="utf-8")
        meta = {"status": result.status, "error": result.error, "warnings": list(result.warnings)}
        rows = _with_meta(pa.Table.from_pandas(result.rows, preserve_index=False), meta)
        _write_whole(self._path(_JOBS, entry), lambda path: pq.write_table(rows, path, compression="zstd"))

    def read_rows(self, entries: Iterable[Entry]) -> pd.DataFrame:
        """Rows of all jobs that are done, in the order given."""
        paths = [path for path in (self._path(_JOBS, entry) for entry in entries) if path.exists()]
        if not paths:
            return pd.DataFrame()
        # Arrow tells a column without a number from one that is not there; pandas guesses
        return pa.concat_tables([pq.read_table(path) for path in paths], promote_options="permissive").to_pandas()

    def read_meta(self, entries: Iterable[Entry]) -> dict[Entry, dict[str, Any]]:
        """Status, error and warnings of all jobs that are done."""
        found = {entry: self._meta(entry) for entry in entries}
        return {entry: meta for entry, meta in found.items() if meta is not None}

    def read_effects(self, entry: Entry) -> pd.DataFrame:
        """(populations, genes) effects of a job, by perturbation and context; empty if it is not done."""
        path = self._path(_EFFECTS, entry)
        if not path.exists() or not self._path(_JOBS, entry).exists():
            return pd.DataFrame()
        table = pq.read_table(path)
        genes = json.loads(table.schema.metadata[_META])["genes"]
        values = table["effect"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, len(genes))
        index = pd.MultiIndex.from_arrays([table[name].to_pandas() for name in EFFECT_LEVELS], names=EFFECT_LEVELS)
        return pd.DataFrame(values, index=index, columns=genes)

    def _path(self, kind: str, entry: Entry) -> Path:
        return self.out / kind / (entry.stem + (".txt" if kind == _TRACEBACKS else ".parquet"))

    def _meta(self, entry: Entry) -> dict[str, Any] | None:
        path = self._path(_JOBS, entry)
        return json.loads(pq.read_schema(path).metadata[_META]) if path.exists() else None


def _owner(path: Path) -> int | None:
    """The process that holds a lock, if it is alive."""
    try:
        pid, started = path.read_text().split()
        alive = psutil.Process(int(pid)).create_time() == float(started)
    except (OSError, ValueError, psutil.Error):
        return None
    return int(pid) if alive else None


def _with_meta(table: pa.Table, meta: dict[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _META: json.dumps(meta)})


def _effects_table(effects: pd.DataFrame) -> pa.Table:
    """One list of all genes per population: a column per gene takes longer to write than to compute."""
    values = np.ascontiguousarray(effects.to_numpy(dtype=np.float32))
    columns = {name: pa.array(effects.index.get_level_values(name).astype(str)) for name in EFFECT_LEVELS}
    columns["effect"] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return _with_meta(pa.table(columns), {"genes": [str(gene) for gene in effects.columns]})


def _write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place and move it there when all of it is on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    write(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
