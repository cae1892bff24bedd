"""The last sections: what it cost, how stable it is, how each number is computed, and how to make it again."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import pandas as pd

from scvi_causal.benchmark._tables import resources, seed_spread
from scvi_causal.metrics import METRICS

from . import _format as fmt
from ._blocks import Block, Bullets, Code, Heading, Table, Text, code, plain
from ._findings import title_of

if TYPE_CHECKING:
    from scvi_causal.metrics import Metric

    from ._findings import Findings

PACKAGES = ("scvi-causal", "scvi-tools", "torch", "anndata", "scanpy", "scikit-learn", "scipy", "numpy", "pandas")
# said elsewhere in the report, or of no use to a reader
SKIPPED = {
    "title", "command", "commit", "versions", "version", "data", "models", "machine", "warnings", "started", "finished", "out",
    "progress", "report", "no_change", "seeds", "folds", "time", "threads",
}  # fmt: skip
MAX_FOLDS, MAX_WARNING = 60, 300


def cost_section(found: Findings) -> list[Block]:
    """Run time and peak memory of each model."""
    table = resources(found.results)
    columns = {
        "fit_cpu_s": ("fit, CPU-s", fmt.seconds),
        "predict_cpu_s": ("predict, CPU-s", fmt.seconds),
        "score_cpu_s": ("score, CPU-s", fmt.seconds),
        "wall_s": ("wall, s", fmt.seconds),
        "peak_memory_mb": ("peak memory, MB", lambda x: fmt.number(x, 0)),
        "model_cpu_s_total": ("fit and predict, all jobs, CPU-s", fmt.seconds),
    }
    columns = {name: value for name, value in columns.items() if name in table and table[name].notna().any()}
    if not columns:
        return []
    rows = [
        [plain(model), str(int(row["jobs"])), *(write(row[name]) for name, (_, write) in columns.items())]
        for model, row in table.iterrows()
    ]
    threads = found.config.get("threads")
    where = f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""
    return [
        Heading("Run time and memory"),
        Table(["model", "jobs", *(title for title, _ in columns.values())], rows),
        Text(
            f"Means over jobs (one model on one fold and seed){where}. Wall time of fit and predict; peak memory above that at "
            "the start of the job, the highest of all jobs.",
            small=True,
        ),
    ]


def stability_section(found: Findings) -> list[Block]:
    """Standard deviation over seeds."""
    table = seed_spread(found.shown, found.top, metrics=found.metrics, populations="all")
    if table.empty or table.isna().all(axis=None):
        return []
    columns = {m: fmt.column(table[m], min(5, fmt.digits_of(table[m]))) for m in found.metrics}
    rows = [[plain(model), *(columns[m][i] for m in found.metrics)] for i, model in enumerate(table.index)]
    return [
        Heading("Spread over seeds"),
        Table(["model", *(plain(title_of(m)) for m in found.metrics)], rows),
        Text(
            f"Standard deviation over {found.results['seed'].nunique()} seeds of the mean over populations. A seed draws other "
            "folds, other halves of the control cells and another start of the model; the intervals above are over "
            "perturbations instead.",
            small=True,
        ),
    ]


def metric_section(found: Findings) -> list[Block]:
    """What each number is, and what computed it."""
    rows = []
    for name in found.metrics:
        m = METRICS[name]
        better = f"closest to {m.best:g}" if m.better == "closer" else m.better
        rows.append([plain(m.title), m.family, better, plain(m.meaning), plain(m.how), _ceiling_of(m)])
    header = ["metric", "family", "better", "meaning", "computed by", "noise ceiling from"]
    return [
        Heading("How each number is computed"),
        Table(header, rows, n_left=len(header)),
        Bullets([*_representation(found), f'"own" is this package. Libraries: {plain(_versions(found))}.']),
    ]


def _ceiling_of(metric: Metric) -> str:
    """How the ceiling of a metric comes from two halves, see :func:`~scvi_causal.metrics.noise_ceiling`."""
    if metric.ceiling == "spearman-brown":
        return "halves, corrected to full size by Spearman-Brown"
    if metric.ceiling == "none":
        return "halves as they are; the best value is known"
    if metric.family in ("DE", "specificity"):
        return "halves as they are: full size has more power, so that skill above 1 is possible"
    if metric.family == "mean":
        return "halves, their error scaled to full size"
    return "halves; what falls with the number of cells scaled to full size"


def _representation(found: Findings) -> list[str]:
    config, items = found.config, []
    normalised = "log1p of counts per 10,000 of the library"
    key = config.get("size_factor_key")
    items.append(f"Representation: {normalised}" + (f" (the library is obs column {code(key)})." if key else "."))
    if "n_observed" in found.results and found.results["n_observed"].notna().any():
        n = found.results.drop_duplicates(["perturbation", "context", "seed"])["n_observed"].dropna()
        text = f"Observed cells per population: median {n.median():.0f}, from {n.min():.0f} to {n.max():.0f}"
        items.append(text + "; means, variances and calls of differential expression use all of them.")
    if config.get("max_cells"):
        items.append(f"Distances between populations use at most {config['max_cells']} cells of each.")
    if config.get("n_de"):
        items.append(f'"DE genes" of R2 and Pearson are the {config["n_de"]} genes with the largest observed effect.')
    shared = config.get("controls", "independent") == "shared"
    items.append(
        "**Shared controls: predictions start from the same control cells as effects are measured against. Correlations of "
        "effects are inflated by the noise of these cells.**"
        if shared
        else "Control cells are split once per context and seed: models see and predict from one half, effects are measured "
        "against the other."
    )
    return items


def _versions(found: Findings) -> str:
    given = dict(found.config.get("versions") or {})
    if not given:
        given = {"Python": platform.python_version()}
        for package in PACKAGES:
            try:
                given[package] = version(package)
            except PackageNotFoundError:
                continue
    return ", ".join(f"{name} {number}" for name, number in given.items())


def origin_section(found: Findings) -> list[Block]:
    """Command, commit, seeds, data, models: what it takes to make the report again."""
    config = found.config
    blocks: list[Block] = [Heading("How it was made")]
    if config.get("command"):
        blocks.append(Code(str(config["command"])))
    facts = config.get("data") if isinstance(config.get("data"), dict) else {"name": config.get("data")}
    facts = {key: value for key, value in facts.items() if value not in (None, "")}
    spent = config.get("time") or {}
    items = {
        "Commit": config.get("commit"),
        "Seeds": fmt.joined(str(seed) for seed in sorted(pd.unique(found.results["seed"]))),
        "Started": config.get("started"),
        "Finished": config.get("finished"),
        "Time": f"{fmt.seconds(spent['wall_s'])} s on the clock" if "wall_s" in spent else None,
        "Machine": config.get("machine"),
        "Data": ", ".join(str(v) if k == "name" else f"{k.replace('_', ' ')} {v}" for k, v in facts.items()),
    }
    if items["Time"] and spent.get("outside_models") is not None:
        items["Time"] += f", {100 * spent['outside_models']:.1f} % of the workers' time outside models"
    blocks.append(Bullets([f"{name}: {plain(value)}" for name, value in items.items() if value]))
    return blocks + _models(config) + _folds(config) + _options(config) + _warnings(config)


def _models(config: dict) -> list[Block]:
    models = config.get("models")
    if not isinstance(models, dict) or not models:
        return []
    rows = [[plain(name), code(text) if text else ""] for name, text in models.items()]
    return [Heading("Models", 3), Table(["name", "how it was made"], rows, n_left=2)]


def _folds(config: dict) -> list[Block]:
    folds = config.get("folds")
    if not isinstance(folds, dict) or not folds:
        return []
    columns = ("held_out", "populations", "left_out", "train_cells", "note")
    columns = [c for c in columns if any(fold.get(c) for fold in folds.values())]
    shown = list(folds.items())[:MAX_FOLDS]
    rows = [[plain(name), *(plain(fold.get(c, "")) for c in columns)] for name, fold in shown]
    words = {i for i, c in enumerate(columns, start=1) if c in ("held_out", "note")}
    blocks: list[Block] = [Heading("Folds", 3)]
    blocks.append(Table(["fold", *(c.replace("_", " ") for c in columns)], rows, left=frozenset(words)))
    return [*blocks, Text(f"The first {MAX_FOLDS} of {len(folds)}.", small=True)] if len(folds) > MAX_FOLDS else blocks


def _options(config: dict) -> list[Block]:
    simple = (str, int, float, bool, list, tuple)
    options = {k: v for k, v in config.items() if k not in SKIPPED and isinstance(v, simple)}
    if not options:
        return []
    text = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return [Heading("Options", 3), Text(code(text), small=True)]


def _warnings(config: dict) -> list[Block]:
    notes = config.get("warnings")
    if not isinstance(notes, dict) or not any(notes.values()):
        return []
    items = [
        f"{plain(name)}: {code(text if len(text) <= MAX_WARNING else text[:MAX_WARNING] + ' ...')}"
        for name, texts in notes.items()
        for text in texts
    ]
    return [Heading("Warnings that models gave", 3), Bullets(items)]
