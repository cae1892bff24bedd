"""One call from a screen to a table that says whether any model is better than a simple baseline."""

from __future__ import annotations

import inspect
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scvi_causal.metrics import METRICS

from . import _origin
from ._engines import Crash, check_engine, run_jobs
from ._job import COST_COLUMNS, JobResult, Scoring, run_job
from ._plan import Plan, join, make_plan
from ._progress import Progress
from ._resources import cpu_seconds
from ._result import BenchmarkResult
from ._store import Manifest, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from ._job import Job
    from ._models import Models
    from ._tasks import Controls, Task

_SETUP = (
    "perturbation_key", "control_category", "perturbation_separator", "layer", "batch_key", "categorical_covariate_keys",
    "size_factor_key", "grn_key", "perturbation_features_key",
)  # fmt: skip


def run(
    adata: AnnData | str | Path,
    task: str | Task = "unseen",
    models: Models = None,
    *,
    out: str | Path,
    perturbation_key: str = "perturbation",
    control_category: str | Sequence[str] = "control",
    perturbation_separator: str | None = "+",
    layer: str | None = None,
    batch_key: str | None = None,
    categorical_covariate_keys: Sequence[str] | None = None,
    size_factor_key: str | None = None,
    grn_key: str | None = None,
    perturbation_features_key: str | None = None,
    covariate_key: str | None = None,
    n_folds: int = 5,
    holdout: str | Sequence | None = None,
    combo_seen: int | None = None,
    seeds: int | Sequence[int] = (0,),
    controls: Controls = "independent",
    engine: Literal["inprocess", "processes", "ray"] = "inprocess",
    n_workers: int = 2,
    threads: int = 1,
    n_de: int = 50,
    max_cells: int = 500,
    min_cells: int = 10,
    max_populations: int | None = None,
    retry_failed: bool = False,
    report: bool = True,
    progress: bool | Callable[[str], None] = True,
    command: str | None = None,
) -> BenchmarkResult:
    """Hold out parts of a screen, let models predict them, and score them between simple baselines and the noise ceiling.

    What comes of a job (one model on one fold and seed, or the noise ceiling of a fold) is written to ``out`` as soon as it
    is there. A run that was stopped goes on where it was when it is started again; further models and seeds are added to
    what the folder holds, and a model whose definition has changed replaces the one of its name. A model that raises, or
    predicts something that cannot be scored, is a row that says so; so is a job whose process was killed.

    Parameters
    ----------
    adata
        The screen, or the path of an ``.h5ad`` file; counts, for which scores are on log(1 + counts per 10,000 of the
        library), or anything else, scored on the scale it has.
    task
        ``"unseen"`` (perturbations, in folds), ``"seen"`` (cells of perturbations that are trained on), ``"combination"``,
        ``"context"`` or ``"context-perturbation"``; see :class:`Task`.
    models
        Names of models of this package, ``{name: class | (class, kwargs) | ModelSpec | factory of a Predictor}``, or a list of
        these; ``None`` is SCCVAE and all simple baselines.
    out
        Folder for results and report.
    perturbation_key, control_category, perturbation_separator, layer, batch_key, categorical_covariate_keys
        As for ``setup_anndata`` of the models. The values of the covariates are the contexts: effects are measured within.
    size_factor_key, grn_key, perturbation_features_key
        As for ``setup_anndata``. ``size_factor_key`` is what scores take for the library too.
    covariate_key, n_folds, holdout, combo_seen
        What is held out; see :class:`Task`.
    seeds
        One repetition each: other folds, other halves of the control cells, another start of the models.
    controls
        ``"independent"``: models see and predict from one half of the control cells, effects are measured against the
        other. ``"shared"``: one set for both, which inflates scores; to show just that.
    engine
        ``"inprocess"``: one job after the other. ``"processes"``: ``n_workers`` processes on this machine. ``"ray"``: on
        Ray, started if it does not run (``pip install "scvi-causal[ray]"``). The results are the same to the last bit.
    n_workers
        Jobs at a time, for the last two.
    threads
        Threads of each job. Other numbers can change the last bits of results.
    n_de
        Genes that count as changed.
    max_cells
        Cells of a population that enter distances between populations at most.
    min_cells
        Cells that a population needs to be scored.
    max_populations
        Populations to score per fold at most, the largest first.
    retry_failed
        Run again what failed before; otherwise it stays as it is.
    report
        Write ``report.html`` and ``report.md`` at the end.
    progress
        ``True`` shows a bar in a terminal or notebook, and nothing elsewhere. A function is called with lines of text instead,
        one for each finished job.
    command
        How the run was started, for the report; the call of this function by default.

    Returns
    -------
    :class:`BenchmarkResult`.

    Raises
    ------
    ValueError
        If the arguments do not fit the data or each other, or ``out`` holds another benchmark. Nothing is written then.
    ImportError
        If Ray is asked for and not installed.

    Notes
    -----
    Costs are those of a job: CPU-seconds of the phases with the threads and child processes of the job, and the peak of
    memory above that at its start. In worker processes nothing else is counted; with ``engine="inprocess"``, whatever else
    the process does meanwhile is. ``config["time"]`` of the result says where the time of the (last) run went: ``wall_s`` in
    all, ``model_s`` in fit and predict of models, ``outside_models`` the share of the workers' wall time that was not spent in
    models; in CPU-seconds, ``model_cpu_s`` and ``score_cpu_s`` (models, and scores with the noise ceiling), and with
    ``engine="inprocess"``, ``cpu_s`` in all, ``cpu_in_models`` and ``cpu_in_scores`` as shares of it.

    Examples
    --------
    >>> import tempfile
    >>> from scvi_causal import benchmark, data
    >>> adata = data.simulate_screen(n_genes=20, n_perturbations=6, n_cells_per_perturbation=40, seed=0).adata
    >>> with tempfile.TemporaryDirectory() as out:
    ...     options = {"n_folds": 2, "report": False, "out": out}
    ...     result = benchmark.run(adata, "unseen", ["ControlMean", "PerturbedMean"], **options)
    ...     again = benchmark.load(out)
    >>> list(result.table().index)
    ['ControlMean', 'PerturbedMean', 'noise ceiling']
    >>> result.results.equals(again.results)
    True
    """
    given = dict(locals())
    clock = _Clock(engine, n_workers)
    store = Store(out)
    held = store.read_manifest()
    check_engine(engine, n_workers, threads)
    plan = make_plan(
        adata,
        task,
        models,
        seeds=seeds,
        setup={name: given[name] for name in _SETUP},
        question={key: given[key] for key in ("covariate_key", "n_folds", "holdout", "combo_seen")},
        folds={key: given[key] for key in ("controls", "min_cells", "max_populations")},
        scoring=Scoring(n_de=n_de, max_cells=max_cells),
    )
    join(held, plan, store.out)  # what does not fit is refused before anything is written
    record = {"command": command or _call(given), "started": _origin.now(), "commit": _origin.commit()}
    how = {"engine": engine, "n_workers": n_workers, "threads": threads}
    record |= {**how, "versions": _origin.versions(engine)}
    with store.lock():
        store.prepare()
        manifest = join(store.read_manifest(), plan, store.out)
        manifest.runs.append(record)
        _work(plan, store, manifest, record, clock, retry_failed, progress, how)
    result = BenchmarkResult.load(out)
    if report:
        result.write_report()
    return result


def _work(
    plan: Plan, store: Store, manifest: Manifest, record, clock: _Clock, retry_failed: bool, progress, how
) -> None:
    """Run what is not done, and keep each result as it comes."""
    statuses = [store.status(entry) for entry in plan.entries]
    todo = [i for i, status in enumerate(statuses) if status is None or (retry_failed and status == "failed")]
    record |= {"jobs_found": len(statuses) - len(todo), "jobs_run": 0, "finished": None}
    store.write_manifest(manifest)
    clock.prepared()
    try:
        with Progress(progress, len(statuses), len(statuses) - len(todo)) as shown:
            jobs = [plan.jobs[i] for i in todo]
            with closing(run_jobs(run_job, plan.screen, jobs, scratch=store.out, **how)) as outcomes:
                for position, outcome in outcomes:
                    job, entry = jobs[position], plan.entries[todo[position]]
                    result = crashed(plan.screen, job, outcome) if isinstance(outcome, Crash) else outcome
                    store.write(entry, result)
                    record["jobs_run"] += 1
                    clock.count(result)
                    shown.advance(job, result)
        record["finished"] = _origin.now()
    finally:  # also after Ctrl-C: what is done stays
        record["time"] = clock.read()
        store.write_manifest(manifest)


def crashed(screen, job: Job, crash: Crash) -> JobResult:
    """The result of a job that never returned one: a failed row for every population."""
    fold = job.fold
    model = {} if job.is_ceiling else {"model": job.model, "is_baseline": job.spec.is_baseline}
    rows = [
        model
        | {"task": fold.task, "fold": fold.index, "seed": fold.seed}
        | {"perturbation": p.perturbation, "context": p.context, "kind": p.kind, "n_observed": len(p.observed)}
        | {"status": "failed", "error": crash.error}
        | ({} if job.is_ceiling else {"n_predicted": 0, "leak": "", "tuned": ""})
        | dict.fromkeys([*METRICS, *COST_COLUMNS], np.nan)
        for p in fold.populations
    ]
    names = [(p.perturbation, p.context) for p in fold.populations]
    effects = pd.DataFrame(
        np.full((len(rows), screen.adata.n_vars), np.nan, dtype=np.float32),
        index=pd.MultiIndex.from_tuples(names, names=["perturbation", "context"]),
        columns=screen.adata.var_names.astype(str),
    )
    told = crash.traceback or crash.error
    return JobResult(
        job.model,
        job.is_ceiling,
        fold.task,
        fold.index,
        fold.seed,
        pd.DataFrame(rows),
        effects,
        "failed",
        crash.error,
        told,
    )


def _call(given: dict[str, Any]) -> str:
    """Call of :func:`run` as Python, for the report."""
    parameters = inspect.signature(run).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    hidden = ("adata", "out", "progress", "command", "report")
    arguments = {name: given[name] for name in parameters if name not in hidden}
    if isinstance(arguments["models"], dict):
        arguments["models"] = list(arguments["models"])  # how each is made stands elsewhere in the report
    data = repr(Path(given["adata"]).name) if isinstance(given["adata"], str | Path) else "adata"
    return _origin.call_text(data, arguments, defaults)


class _Clock:
    """Where the time of a run goes."""

    def __init__(self, engine: str, n_workers: int) -> None:
        self._is_here = engine == "inprocess"
        self._n_workers = 1 if self._is_here else n_workers
        self._started, self._cpu = time.perf_counter(), cpu_seconds()
        self._prepared = self._started
        self._sums = dict.fromkeys(COST_COLUMNS, 0.0)

    def prepared(self) -> None:
        """Data are read and jobs are laid out."""
        self._prepared = time.perf_counter()

    def count(self, result: JobResult) -> None:
        """A job is done; its costs stand in each of its rows."""
        for name in COST_COLUMNS:
            value = float(result.rows[name].iloc[0]) if len(result.rows) else 0.0
            self._sums[name] += value if np.isfinite(value) else 0.0

    def read(self) -> dict[str, float]:
        """Seconds so far, and shares."""
        now, sums = time.perf_counter(), self._sums
        # preparing is done by one process, whatever the number of workers
        workers = (self._prepared - self._started) + (now - self._prepared) * self._n_workers
        models, scores = sums["fit_cpu_s"] + sums["predict_cpu_s"], sums["score_cpu_s"]
        found = {
            "wall_s": now - self._started,
            "prepare_s": self._prepared - self._started,
            "model_s": sums["wall_s"],
            "model_cpu_s": models,
            "score_cpu_s": scores,
            "outside_models": 1.0 - sums["wall_s"] / workers,
        }
        if self._is_here:  # the CPU time of workers outside of jobs is theirs alone
            cpu = cpu_seconds() - self._cpu
            found |= {"cpu_s": cpu, "cpu_in_models": models / cpu, "cpu_in_scores": scores / cpu}
        return {name: round(value, 4) for name, value in found.items()}
