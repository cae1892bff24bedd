"""One job: one model on one fold, from a fresh object to rows of scores. Nothing that a model does gets out of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import pandas as pd

from ._resources import Meter

if TYPE_CHECKING:
    from ._folds import Fold
    from ._models import ModelSpec
    from ._screen import Screen

CEILING = "noise ceiling"
"""Name of the job that measures real cells against real cells."""

ROW_COLUMNS = (
    "model",
    "is_baseline",
    "task",
    "fold",
    "seed",
    "perturbation",
    "context",
    "kind",
    "n_observed",
    "n_predicted",
    "status",
    "error",
    "leak",
    "tuned",
)
"""Columns before the metrics (``METRICS``); after them come those of ``COST_COLUMNS``."""
COST_COLUMNS = ("fit_cpu_s", "predict_cpu_s", "score_cpu_s", "wall_s", "peak_memory_mb")


@dataclass(frozen=True)
class Scoring:
    """How populations are scored; the same for all jobs of a run.

    Parameters
    ----------
    n_de
        Genes that count as changed.
    max_cells
        Cells of a population that enter distances at most.
    n_splits
        Random halves that the noise ceiling of a mean or an effect is averaged over.
    n_cell_splits
        The same for what is computed from cells (distances, calls, dispersion): ten times the work, and less noise.
    n_bootstrap
        Bootstrap samples of its intervals; 0 for none.
    n_permutations
        Of the test whether a population differs from control; 0 for none.
    """

    n_de: int = 50
    max_cells: int = 500
    n_splits: int = 5
    n_cell_splits: int = 2
    n_bootstrap: int = 200
    n_permutations: int = 999


@dataclass(frozen=True, eq=False)
class Job:
    """One model (or, without ``spec``, the noise ceiling) on one fold.

    Parameters
    ----------
    model
        Name in the tables; :data:`CEILING` for the ceiling.
    spec
        How the model is made; ``None`` is the noise ceiling.
    fold
        The fold, which carries the seed.
    scoring
        How populations are scored.
    """

    model: str
    spec: ModelSpec | None
    fold: Fold
    scoring: Scoring = field(default_factory=Scoring)

    @property
    def is_ceiling(self) -> bool:
        """Whether this is the job of the noise ceiling."""
        return self.spec is None

    @property
    def seed(self) -> int:
        """Seed of the repetition: of the split, and with the number of the fold of the model."""
        return self.fold.seed

    @property
    def title(self) -> str:
        """For progress bars and logs."""
        return f"{self.model}, fold {self.fold.index}, seed {self.seed}"

    def key(self, fingerprint: str) -> str:
        """32 hexadecimal digits that stand for everything the result depends on; ``fingerprint`` is that of the screen."""
        from scvi_causal import __version__

        parts = {
            "data": fingerprint,
            "fold": self.fold.digest,
            "model": self.model,
            "spec": None if self.spec is None else self.spec.digest(),
            "scoring": asdict(self.scoring),
            "version": __version__,
        }
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(eq=False)
class JobResult:
    """What came of a job; nothing but tables, strings and numbers, so that it can be pickled and stored.

    Attributes
    ----------
    rows
        One row per population with :data:`ROW_COLUMNS`, the metrics and :data:`COST_COLUMNS`. For the ceiling: ``task``,
        ``fold``, ``seed``, ``perturbation``, ``context``, ``kind``, ``n_observed``, the metrics, ``<metric>_low`` and
        ``<metric>_high`` (95 %), ``p_effect`` and the costs.
    effects
        (populations, genes) float32, index (perturbation, context): mean of the prediction minus mean of its source cells;
        for the ceiling mean of the observed cells minus mean of the reference controls. NaN where there is no prediction.
    status
        ``"ok"``; ``"failed"`` if any row failed; ``"refused"`` if the model refused every target.
    error
        Last line of the first error; ``""`` if there was none.
    traceback
        All of it.
    warnings
        Distinct warnings that the model gave.
    """

    model: str
    is_ceiling: bool
    task: str
    fold: int
    seed: int
    rows: pd.DataFrame
    effects: pd.DataFrame
    status: Literal["ok", "failed", "refused"] = "ok"
    error: str = ""
    traceback: str = ""
    warnings: list[str] = field(default_factory=list)


def run_job(screen: Screen, job: Job) -> JobResult:
    """Run a job.

    Whatever the model raises or returns ends up in the result; only ``KeyboardInterrupt`` passes. Seeds are set from the fold,
    and the random states of the process are as before when it returns.

    Parameters
    ----------
    screen
        The data; not changed.
    job
        What to do.

    Examples
    --------
    >>> from scvi_causal.benchmark import Task
    >>> from scvi_causal.benchmark._folds import make_folds
    >>> from scvi_causal.benchmark._job import Job, run_job
    >>> from scvi_causal.benchmark._models import ModelSpec
    >>> from scvi_causal.benchmark._screen import Screen
    >>> from scvi_causal.data import simulate_screen
    >>> adata = simulate_screen(n_genes=20, n_perturbations=4, n_cells_per_perturbation=30, n_control=60, seed=0).adata
    >>> screen = Screen.build(adata)
    >>> fold = make_folds(screen, Task("unseen", n_folds=2))[0]
    >>> result = run_job(screen, Job("PerturbedMean", ModelSpec("PerturbedMean"), fold))
    >>> result.status, len(result.rows)
    ('ok', 2)
    """
    from ._ceiling_job import measure_ceiling
    from ._model_job import run_model

    with Meter() as meter:
        rows, effects, failure, warned = (measure_ceiling if job.is_ceiling else run_model)(screen, job, meter)
    usage = meter.usage
    costs = {f"{phase}_cpu_s": usage.cpu_s(phase) for phase in ("fit", "predict", "score")}
    costs |= {
        "wall_s": usage.phase_wall_s("fit", "predict"),
        "peak_memory_mb": usage.peak_memory_mb("fit", "predict"),
    }
    statuses = {row["status"] for row in rows}
    status = "failed" if "failed" in statuses else "refused" if statuses == {"refused"} else "ok"
    table = pd.DataFrame([row | costs for row in rows])
    index = pd.MultiIndex.from_tuples(
        [(p.perturbation, p.context) for p in job.fold.populations], names=["perturbation", "context"]
    )
    effects = pd.DataFrame(effects, index=index, columns=screen.adata.var_names.astype(str))
    fold = job.fold
    return JobResult(
        job.model, job.is_ceiling, fold.task, fold.index, fold.seed, table, effects, status, *failure, warned
    )
