"""What there is to do: the jobs of a run, how they are named on disk, and whether they belong into a folder that is in use."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scvi_causal
from scvi_causal.data._messages import listed

from ._folds import make_folds
from ._job import CEILING, Job, Scoring
from ._models import resolve_models
from ._screen import Screen
from ._store import Entry, Manifest
from ._tasks import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from ._models import Models, ModelSpec

# options of a run that decide which cells are held out and how they are scored: one folder, one value of each
_WORLD = (
    "task", "covariate_key", "n_folds", "holdout", "combo_seen", "controls", "min_cells", "max_populations",
    "n_de", "max_cells", "perturbation_key", "control_category", "perturbation_separator", "layer", "batch_key",
    "categorical_covariate_keys", "size_factor_key", "grn_key", "perturbation_features_key", "version",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The jobs of a run, fold by fold, and what ``run.json`` says of them."""

    screen: Screen
    jobs: list[Job]
    entries: list[Entry]
    config: dict[str, Any]


def make_plan(
    adata: AnnData | str | Path,
    task: str | Task,
    models: Models,
    *,
    seeds: int | Sequence[int],
    setup: dict[str, Any],
    question: dict[str, Any],
    folds: dict[str, Any],
    scoring: Scoring,
) -> Plan:
    """Read the data and lay out all jobs.

    Parameters
    ----------
    adata, task, models, seeds
        As for :func:`scvi_causal.benchmark.run`.
    setup
        Further arguments of :meth:`Screen.build`.
    question
        Further arguments of :class:`Task`.
    folds
        Further arguments of :func:`make_folds`.
    scoring
        How populations are scored.

    Raises
    ------
    ValueError
        If something does not fit the data; nothing is written then.
    """
    seeds = _check_seeds(seeds)
    asked = Task.parse(task, **question)
    specs = resolve_models(models, has_features=setup["perturbation_features_key"] is not None)
    if CEILING in specs:
        raise ValueError(f"A model cannot be called {CEILING!r}: that is the name of the real cells in the tables.")
    screen = Screen.build(_whole(adata), covariate_key=asked.covariate_key, **setup)
    made = {seed: make_folds(screen, asked, seed, **folds) for seed in seeds}
    # fold by fold, so that what the jobs of a fold share is made once
    jobs = [
        Job(name, spec, fold, scoring)
        for seed in seeds
        for fold in made[seed]
        for name, spec in {CEILING: None, **specs}.items()
    ]
    entries = [Entry.of(job, screen.fingerprint) for job in jobs]
    config = _describe(adata, screen, asked, specs, setup, folds, scoring) | {
        "seeds": list(seeds),
        "folds": {
            f"seed {fold.seed}, fold {fold.index}": {
                "held_out": fold.description,
                "populations": len(fold.populations),
                "left_out": fold.n_left_out,
                "train_cells": len(fold.train),
                "note": fold.note,
            }
            for of_seed in made.values()
            for fold in of_seed
        },
    }
    return Plan(screen, jobs, entries, json.loads(json.dumps(config)))


def _whole(adata: AnnData | str | Path) -> AnnData | str | Path:
    """Data that other processes can be given: no view of larger data, no handle of a file."""
    if isinstance(adata, str | Path):
        return adata
    return adata.to_memory() if adata.isbacked else adata.copy() if adata.is_view else adata


def _check_seeds(seeds: int | Sequence[int]) -> list[int]:
    given = [seeds] if isinstance(seeds, int) else list(seeds)
    bad = [seed for seed in given if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0]
    if bad or not given or len(set(given)) < len(given):
        raise ValueError(f"seeds={seeds!r}: pass one or several different whole numbers from 0 on.")
    return given


def _describe(adata, screen: Screen, task: Task, specs: dict[str, ModelSpec], setup, folds, scoring) -> dict[str, Any]:
    n_control = int(screen.is_control.sum())
    no_change = [name for name, spec in specs.items() if getattr(spec.factory, "__name__", "") == "ControlMean"]
    data = {
        "name": Path(adata).name if isinstance(adata, str | Path) else "an AnnData",
        "cells": int(screen.adata.n_obs),
        "genes": int(screen.adata.n_vars),
        "perturbations": len(screen.tokens) - 1,
        "control_cells": n_control,
        "expression": "counts" if screen.is_counts else "no counts: scored on the scale it has",
        "fingerprint": screen.fingerprint,
    }
    asked = {name: value for name, value in asdict(task).items() if name != "kind"}
    return {
        "task": task.kind,
        "title": f"Benchmark: {task.title}",
        **asked,
        **folds,
        **asdict(scoring),
        **setup,
        "control_category": screen.setup["control_category"],
        "categorical_covariate_keys": screen.setup["categorical_covariate_keys"],
        "data": data,
        "models": {name: model_text(spec) for name, spec in specs.items()},
        "no_change": no_change[0] if no_change else None,
        "version": scvi_causal.__version__,
    }


def model_text(spec: ModelSpec) -> str:
    """How a model is made, in one line."""
    parts = spec.describe()
    module, _, name = parts["factory"].partition(":")
    name = name if module.startswith("scvi_causal.") else parts["factory"]
    text = f"{name}({', '.join(f'{k}={v!r}' for k, v in parts['kwargs'].items())})"
    more = [
        f"{key}: {', '.join(f'{k}={v!r}' for k, v in parts[key].items())}"
        for key in ("setup", "train", "grid")
        if parts[key]
    ]
    return "; ".join([text, *more])


# ---------------------------------------------------------------------- a folder that is in use


def join(held: Manifest | None, plan: Plan, out: Path) -> Manifest:
    """What the folder will hold: what it holds already, and the jobs of the plan.

    A model whose definition has changed replaces the one of its name.

    Raises
    ------
    ValueError
        If the folder is that of other data or of another question; says what differs.
    """
    if held is None:
        return Manifest(dict(plan.config), _in_order(plan.entries, plan.config))
    _check_same_world(held, plan, out)
    specs = {entry.model: entry.spec for entry in plan.entries}
    kept = [entry for entry in held.jobs if specs.get(entry.model, entry.spec) == entry.spec]
    places = {(entry.model, entry.seed, entry.fold) for entry in plan.entries}
    kept = [entry for entry in kept if (entry.model, entry.seed, entry.fold) not in places]
    config = {**held.config, **plan.config}
    config["models"] = {**held.config["models"], **plan.config["models"]}
    config["folds"] = {**held.config["folds"], **plan.config["folds"]}
    config["seeds"] = sorted({*held.config["seeds"], *plan.config["seeds"]})
    config["no_change"] = plan.config["no_change"] or held.config["no_change"]
    return Manifest(config, _in_order([*kept, *plan.entries], config), held.runs)


def _in_order(entries: list[Entry], config: dict[str, Any]) -> list[Entry]:
    """The noise ceiling, then models as named; the same whatever was done first."""
    order = {name: i for i, name in enumerate([CEILING, *config["models"]])}
    return sorted(entries, key=lambda entry: (order[entry.model], entry.seed, entry.fold))


def _check_same_world(held: Manifest, plan: Plan, out: Path) -> None:
    """Refuse to mix numbers that mean different things. What decides is the jobs; words are for the message."""
    mine, theirs = (_ceilings(entries) for entries in (plan.entries, held.jobs))
    shared = mine.keys() & theirs.keys()
    if shared and all(mine[seed] == theirs[seed] for seed in shared):
        return
    differ = [
        f"{name}={held.config.get(name)!r} there, {plan.config.get(name)!r} now"
        for name in _WORLD
        if held.config.get(name) != plan.config.get(name)
    ]
    before, now = held.config["data"], plan.config["data"]
    if before["fingerprint"] != now["fingerprint"] and not differ:
        sizes = [f"{data['name']}, {data['cells']:,} cells x {data['genes']:,} genes" for data in (before, now)]
        differ.append(
            f"the data ({sizes[0]} there, {sizes[1]} now)" + (", whose values differ" if sizes[0] == sizes[1] else "")
        )
    if not shared and not differ:
        return
    raise ValueError(
        f"{out} holds another benchmark: {'; '.join(differ) or 'its folds differ'}. Numbers of the two do not belong into one "
        f"table: choose another folder with out, or remove this one. It holds {listed(held.config['models'])}."
    )


def _ceilings(entries: list[Entry]) -> dict[int, frozenset[str]]:
    """Keys of the noise ceilings by seed: they depend on everything but the models."""
    seeds = {entry.seed for entry in entries if entry.is_ceiling}
    return {seed: frozenset(e.key for e in entries if e.is_ceiling and e.seed == seed) for seed in seeds}
