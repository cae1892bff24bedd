"""What a benchmark found: rows, noise ceiling, effects; tables and the report are made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from scvi_causal.data._messages import listed, plural

from ._compare import compare
from ._store import EFFECT_LEVELS, RUN_FILE, Entry, Manifest, Store
from ._tables import summary

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ._report._write import ReportFiles

OBSERVED = "observed"
_LEVELS = ["model", "seed", "fold", *EFFECT_LEVELS]


@dataclass(eq=False, repr=False)
class BenchmarkResult:
    """Results of a benchmark; :func:`run` returns one and :meth:`load` reads one from its folder.

    Attributes
    ----------
    results
        One row per model, seed, fold and population: ``model``, ``is_baseline``, ``task``, ``fold``, ``seed``,
        ``perturbation``, ``context``, ``kind`` (in which way it is new), ``n_observed``, ``n_predicted``, ``status``
        (``"ok"``, ``"refused"``, ``"failed"``), ``error``, ``leak`` (empty if there is none), ``tuned``, the
        :data:`~scvi_causal.metrics.METRICS`, and the costs of the job in every row of it: ``fit_cpu_s``,
        ``predict_cpu_s``, ``score_cpu_s`` (CPU-seconds), ``wall_s`` (of fit and predict), ``peak_memory_mb``.
    ceiling
        One row per seed, fold and population: what one half of the real cells scores as a prediction of the other, with
        ``<metric>_low`` and ``<metric>_high`` (95 %), and ``p_effect``, of the test that the population differs from control.
    config
        What was asked of which data, with which versions: the arguments of :func:`run` by their names, and ``command``,
        ``commit``, ``versions``, ``data``, ``models``, ``folds``, ``warnings``, ``time`` (see :func:`run`).
    out
        The folder.
    missing
        Jobs that are not done, because the run was stopped: (model, seed, fold).

    Examples
    --------
    See :func:`run`.
    """

    results: pd.DataFrame
    ceiling: pd.DataFrame
    config: dict[str, Any]
    out: Path
    missing: list[tuple[str, int, int]] = field(default_factory=list)
    _entries: list[Entry] = field(default_factory=list)

    def __repr__(self) -> str:
        models = listed(self.config["models"], limit=4)
        waiting = f", {plural(len(self.missing), 'job')} not done" if self.missing else ""
        return f"{type(self).__name__}({self.config['title']!r}, {models}, {plural(len(self.results), 'row')}{waiting})"

    @classmethod
    def load(cls, out: str | Path) -> BenchmarkResult:
        """Read the folder of a run, finished or not.

        Parameters
        ----------
        out
            The folder that :func:`run` wrote.

        Raises
        ------
        ValueError
            If it is not such a folder.
        """
        store = Store(out)
        manifest = store.read_manifest()
        if manifest is None:
            raise ValueError(
                f"{store.out} holds no benchmark: it has no {RUN_FILE}. Pass the folder that run wrote to."
            )
        meta = store.read_meta(manifest.jobs)
        return cls(
            results=store.read_rows(entry for entry in manifest.jobs if not entry.is_ceiling),
            ceiling=store.read_rows(entry for entry in manifest.jobs if entry.is_ceiling),
            config=_complete(manifest, meta),
            out=store.out,
            missing=[(entry.model, entry.seed, entry.fold) for entry in manifest.jobs if entry not in meta],
            _entries=manifest.jobs,
        )

    def table(self, **options: Any) -> pd.DataFrame:
        """One row per model, the noise ceiling last: means over populations, raw and as skill.

        Skill is 0 for the best simple baseline and 1 for the noise ceiling.

        Parameters
        ----------
        options
            ``metrics`` (names; the headline metrics by default), ``populations`` (``"detectable"``,
            ``"indistinguishable"`` from control cells, or ``"all"``), ``skill`` (whether to add it).
        """
        self._check_any()
        return summary(self.results, self.ceiling, **options)

    def compare(self, **options: Any) -> pd.DataFrame:
        """Each model against the best simple baseline and against no change, paired by population.

        Differences with intervals from a bootstrap over perturbations, sign-flip tests with a correction for all of
        them (step-down max-T), and a verdict.

        Parameters
        ----------
        options
            ``metrics`` and ``populations`` as for :meth:`table`; ``n_boot`` and ``seed`` of the bootstrap.
        """
        self._check_any()
        return compare(self.results, self.ceiling, **{"no_change": self.config.get("no_change"), **options})

    def verdict(self) -> str:
        """One sentence: was any model shown to be better than the best simple baseline?"""
        from ._report._findings import Findings
        from ._report._words import verdict

        self._check_any()
        return verdict(Findings(self.results, self.ceiling, self.config)).replace("**", "")

    def effects(self, populations: Sequence[tuple[str, str]] | None = None) -> pd.DataFrame:
        """Effects on every gene, observed and predicted.

        Parameters
        ----------
        populations
            (perturbation, context) pairs; all by default.

        Returns
        -------
        One row per model and ``"observed"``, seed, fold, perturbation and context (the index), one column per gene: the mean
        of the predicted cells minus that of the control cells they start from; for ``"observed"`` the mean of the held-out
        cells minus that of the reference controls. NaN where nothing was predicted.
        """
        store, parts = Store(self.out), []
        for entry in self._entries:
            table = store.read_effects(entry)
            if populations is not None and len(table):
                table = table[table.index.isin([tuple(pair) for pair in populations])]
            if len(table):
                name = OBSERVED if entry.is_ceiling else entry.model
                parts.append(pd.concat({(name, entry.seed, entry.fold): table}, names=_LEVELS[:3]))
        return (
            pd.concat(parts).sort_index() if parts else pd.DataFrame(index=pd.MultiIndex.from_tuples([], names=_LEVELS))
        )

    def write_report(self, out: str | Path | None = None, **options: Any) -> ReportFiles:
        """Write ``report.html`` (one file that needs no other), ``report.md`` and the figures of the latter.

        Parameters
        ----------
        out
            Folder; that of the run by default.
        options
            ``name`` of the files, ``metrics`` to show.

        Returns
        -------
        The paths: ``html``, ``markdown``, ``figures``.
        """
        from ._report import write_report

        self._check_any()
        return write_report(self, self.out if out is None else out, **options)

    def _check_any(self) -> None:
        if self.results.empty:
            waiting = dict.fromkeys(model for model, _, _ in self.missing)
            raise ValueError(f"No job of a model is done in {self.out} (not done: {listed(waiting)}): run it again.")


def load(out: str | Path) -> BenchmarkResult:
    """Read the folder of a run, finished or not; see :meth:`BenchmarkResult.load`.

    Parameters
    ----------
    out
        The folder that :func:`run` wrote.
    """
    return BenchmarkResult.load(out)


def _complete(manifest: Manifest, meta: dict[Entry, dict[str, Any]]) -> dict[str, Any]:
    """The configuration with what the runs on this folder and the files of its jobs say."""
    config, runs = dict(manifest.config), manifest.runs
    worked = [record for record in runs if record.get("jobs_run")] or runs[-1:]
    if worked:
        config |= {
            key: worked[-1].get(key) for key in ("engine", "n_workers", "threads", "versions", "finished", "time")
        }
        config["command"] = "\n".join(dict.fromkeys(record["command"] for record in worked))
        config["commit"] = ", ".join(dict.fromkeys(record["commit"] for record in worked if record["commit"])) or None
        config["started"] = worked[0]["started"]
    warned: dict[str, dict[str, None]] = {}
    for entry, found in meta.items():
        warned.setdefault(entry.model, {}).update(dict.fromkeys(found["warnings"]))
    config["warnings"] = {model: list(texts) for model, texts in warned.items() if texts}
    return config
