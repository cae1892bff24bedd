"""``scvi-causal benchmark``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ._shared import add_screen_options, positive, quiet

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import pandas as pd

    from scvi_causal.benchmark import BenchmarkResult

EXAMPLE = "kang18"
TASKS = ("unseen", "seen", "combination", "context", "context-perturbation")
# what fits beside each other in a terminal; the report has all
TERMINAL_METRICS = (
    "pearson_effect", "pearson_centred", "mse_unbiased_ratio", "energy_pca", "variance_ratio", "discrimination",
)  # fmt: skip
# errors name the arguments of scvi_causal.benchmark.run
FLAGS = {
    "control_category": "--control",
    "perturbation_separator": "--separator",
    "categorical_covariate_keys": "--covariate-key",
    "covariate_key": "--context-key",
    "perturbation_features_key": "--features-key",
    "n_folds": "--folds",
    "n_workers": "--workers",
}


def add_command(commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "benchmark",
        help="is any model better than a simple baseline on a screen, and how far is all from the noise ceiling",
        description="Holds out parts of a screen, lets models and simple baselines predict them, and scores them between the "
        "best simple baseline and the noise ceiling. Writes every finished job to the folder, so that a run that was stopped "
        "goes on when it is started again; further models and seeds are added to what is there.",
        epilog="example: scvi-causal benchmark screen.h5ad --task unseen --models SCCVAE PerturbedMean --out runs/screen",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help=f"an .h5ad file, or {EXAMPLE}: the embedded example")
    parser.add_argument("--list-models", action="store_true", help="print the models of this package, and end")
    parser.add_argument(
        "--task",
        default="unseen",
        choices=TASKS,
        help="what models never see: perturbations, cells of seen perturbations, combinations, the perturbed cells of a "
        "context, a perturbation in a context (default: %(default)s)",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="models of this package, or package.module:name of anything with fit and predict (default: SCCVAE and all "
        "simple baselines)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for results and report")
    add_screen_options(parser)
    parser.add_argument(
        "--context-key", metavar="COLUMN", help="obs column whose values are left out, for the last two tasks"
    )
    parser.add_argument(
        "--holdout",
        nargs="+",
        metavar="WHAT",
        help="what to hold out instead of folds: perturbations, combinations, values of the context, or PERTURBATION@CONTEXT",
    )
    parser.add_argument("--folds", type=positive, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--combo-seen", type=int, metavar="N", help="seen tokens of a held-out combination (default: all)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="one repetition each (default: 0)"
    )
    parser.add_argument(
        "--controls",
        choices=("independent", "shared"),
        default="independent",
        help="whether effects are measured against control cells that no model sees; shared ones inflate scores "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--min-cells", type=positive, default=10, metavar="N", help="of a scored population (default: 10)"
    )
    parser.add_argument("--max-populations", type=positive, metavar="N", help="to score per fold, the largest first")
    parser.add_argument(
        "--engine",
        choices=("inprocess", "processes", "ray"),
        default="inprocess",
        help="where jobs run; the results are the same (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=positive, default=2, metavar="N", help="jobs at a time (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help="of each job (default: %(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="run again what failed before")
    parser.add_argument("--no-report", action="store_true", help="only the results")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace, command: str, say: Callable[[str], None]) -> int:
    if arguments.list_models:
        _list_models(say)
        return 0
    missing = [name for name, value in (("FILE", arguments.file), ("--out", arguments.out)) if value is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed; see scvi-causal benchmark --help."
        )
    say("Loading ...")
    with quiet():
        from scvi_causal import benchmark

        # in a terminal a bar, which libraries below must not break; elsewhere lines
        progress = True if sys.stderr.isatty() else say
        try:
            result = benchmark.run(**_options(arguments), progress=progress, command=command)
        except ValueError as error:
            raise ValueError(_in_flags(str(error))) from error
        except KeyboardInterrupt:
            say(f"Stopped. What is done is in {arguments.out}; the same command goes on from there.")
            return 130
        _tell(result, arguments, say)
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of :func:`scvi_causal.benchmark.run`."""
    context, covariates = arguments.context_key, list(arguments.covariate_key)
    if context is None and arguments.task.startswith("context") and len(covariates) == 1:
        context = covariates[0]
    return {
        "adata": _data(arguments.file),
        "task": arguments.task,
        "models": arguments.models,
        "out": arguments.out,
        "perturbation_key": arguments.perturbation_key,
        "control_category": arguments.control,
        "perturbation_separator": arguments.separator or None,
        "layer": arguments.layer,
        "batch_key": arguments.batch_key,
        "categorical_covariate_keys": covariates or None,
        "size_factor_key": arguments.size_factor_key,
        "grn_key": arguments.grn_key,
        "perturbation_features_key": arguments.features_key,
        "covariate_key": context,
        "n_folds": arguments.folds,
        "holdout": _units(arguments.holdout, arguments.task),
        "combo_seen": arguments.combo_seen,
        "seeds": arguments.seeds,
        "controls": arguments.controls,
        "engine": arguments.engine,
        "n_workers": arguments.workers,
        "threads": arguments.threads,
        "min_cells": arguments.min_cells,
        "max_populations": arguments.max_populations,
        "retry_failed": arguments.retry_failed,
        "report": not arguments.no_report,
    }


def _data(file: str) -> Any:
    if file == EXAMPLE and not Path(file).exists():
        from scvi_causal.datasets import kang18

        return kang18()
    return Path(file)


def _units(holdout: list[str] | None, task: str) -> list | None:
    if holdout is None or task != "context-perturbation":
        return holdout
    wrong = [unit for unit in holdout if "@" not in unit]
    if wrong:
        raise ValueError(f"--holdout {wrong[0]}: this task takes PERTURBATION@CONTEXT, e.g. 'STAT1@K562'.")
    return [tuple(unit.split("@", 1)) for unit in holdout]


def _in_flags(message: str) -> str:
    """An error of :func:`scvi_causal.benchmark.run` with the options of the command line for its arguments."""
    message = re.sub(r"\b[a-z]+(_[a-z]+)+\b", lambda found: FLAGS.get(found[0], _flag(found[0])), message)
    return re.sub(r"\bwith out\b", "with --out", message)


def _flag(name: str) -> str:
    known = (
        "perturbation_key",
        "batch_key",
        "size_factor_key",
        "grn_key",
        "combo_seen",
        "min_cells",
        "max_populations",
    )
    return f"--{name.replace('_', '-')}" if name in known else name


def _list_models(say: Callable[[str], None]) -> None:
    import scvi_causal
    from scvi_causal.model import CausalModel

    for name in scvi_causal.__all__:
        found = getattr(scvi_causal, name)
        if isinstance(found, type) and issubclass(found, CausalModel):
            first = re.sub(r"\s*:[\w:]+:`[^`]*`", "", (found.__doc__ or "").strip().splitlines()[0])
            say(f"{name:<22}{first}")


# ---------------------------------------------------------------------- what is told at the end


def _tell(result: BenchmarkResult, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    failed = sorted(set(result.results.loc[result.results["status"] == "failed", "model"]))
    say("\n" + text_table(result.table(skill=False)) + "\n")
    say(result.verdict())
    if failed:
        say(f"Failed, in part or altogether: {', '.join(failed)}; tracebacks are in {arguments.out / 'tracebacks'}.")
    say(_time_text(result.config))
    say(f"Report: {arguments.out / 'report.html'}" if not arguments.no_report else f"Results: {arguments.out}")


def _time_text(config: dict[str, Any]) -> str:
    times = config["time"]
    text = f"{times['wall_s']:,.0f} s"
    if "cpu_s" in times:
        models, scores = times["cpu_in_models"], times["cpu_in_scores"]
        return f"{text}; of the CPU time, {models:.0%} in models, {scores:.0%} in scores, {1 - models - scores:.0%} elsewhere."
    return f"{text} with {config['n_workers']} workers; {1 - times['outside_models']:.0%} of their time in models."


def text_table(table: pd.DataFrame) -> str:
    """The table for a terminal; titles take as many lines as they need to be narrow."""
    from scvi_causal.metrics import METRICS

    shown = [name for name in TERMINAL_METRICS if name in table and table[name].notna().any()]
    titles = [wrap(f"{METRICS[name].title} ({_way(METRICS[name])})", 14, break_long_words=False) for name in shown]
    titles = [[""], ["scored"], *titles]
    height = max(map(len, titles))
    head = [list(line) for line in zip(*([""] * (height - len(title)) + title for title in titles), strict=True)]
    rows = [
        [str(model), f"{row['scored']:.0f}/{row['asked']:.0f}", *(_number(row[name]) for name in shown)]
        for model, row in table.iterrows()
    ]
    widths = [max(map(len, column)) for column in zip(*head, *rows, strict=True)]
    texts = [
        f"{line[0]:<{widths[0]}}" + "".join(f"  {x:>{w}}" for x, w in zip(line[1:], widths[1:], strict=True))
        for line in [*head, *rows]
    ]
    rule = "-" * len(texts[0])
    return "\n".join([*texts[:height], rule, *texts[height:-1], rule, texts[-1]])


def _way(metric) -> str:
    return f"-> {metric.best:g}" if metric.better == "closer" else metric.better


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"
