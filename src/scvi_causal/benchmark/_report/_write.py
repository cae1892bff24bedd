"""Write both reports from the same blocks."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scvi_causal.data._messages import plural

from . import _method, _sections
from ._blocks import Block, Heading, Picture, Text, plain
from ._findings import Findings
from .html import to_html
from .markdown import to_markdown

if TYPE_CHECKING:
    from collections.abc import Sequence


class ReportFiles(NamedTuple):
    """Where a report was written."""

    html: Path
    markdown: Path
    figures: Path


def write_report(result, out: str | Path, *, name: str = "report", metrics: Sequence[str] | None = None) -> ReportFiles:
    """Write ``<name>.html`` (self-contained), ``<name>.md`` and ``figures/*.png`` into ``out``.

    Reports with different names can lie in one folder: their pictures carry the name.

    Parameters
    ----------
    result
        With ``results`` and ``ceiling`` (DataFrames), ``config`` (dict), and, for the pictures of effects,
        ``effects(populations)``: given a list of (perturbation, context), a DataFrame of effects with one column per gene
        and the index levels ``model`` (``"observed"`` for the truth), ``seed``, ``fold``, ``perturbation``, ``context``.
        Without it, or where it returns no rows, these pictures are left out. Of ``config``, the arguments of ``run`` are
        read by their names, and ``title``, ``command``, ``commit``, ``versions`` (dict), ``data`` (dict of facts: name,
        cells, genes ...), ``models`` (dict of texts), ``folds`` (dict of dicts), ``time``, ``warnings`` (dict of lists) and
        ``no_change`` (name of the model that predicts no change, else ``"ControlMean"``); what is not there is not
        mentioned. ``missing``, a list of jobs (model, ...) that are not done, becomes a warning on top.
    out
        Folder; made if it is not there.
    name
        Of the two files.
    metrics
        Shown in the tables; ``None`` is the headline metrics.

    Returns
    -------
    The paths of the two files and of the folder of figures.

    Raises
    ------
    ValueError
        If there are no results, or a metric is unknown.
    """
    blocks = build(result, metrics)
    out = Path(out)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    prefix = "" if name == "report" else f"{name}_"  # reports side by side share the folder of figures
    blocks = [replace(b, name=prefix + b.name) if isinstance(b, Picture) else b for b in blocks]
    pictures = {block.name: block.png for block in blocks if isinstance(block, Picture)}
    for stale in _pictures_of(prefix, figures) - set(pictures):
        (figures / stale).unlink()
    for picture, png in pictures.items():
        (figures / picture).write_bytes(png)
    files = ReportFiles(out / f"{name}.html", out / f"{name}.md", figures)
    files.markdown.write_text(to_markdown(blocks, figures.name), encoding="utf-8")
    files.html.write_text(to_html(blocks), encoding="utf-8")
    return files


def _pictures_of(prefix: str, figures: Path) -> set[str]:
    """Names of pictures that an earlier report of this name left."""
    pattern = re.compile(re.escape(prefix) + r"(skill|effects|scores_\d+)\.png")
    return {path.name for path in figures.iterdir() if pattern.fullmatch(path.name)}


def build(result, metrics: Sequence[str] | None = None) -> list[Block]:
    """The whole report as blocks."""
    if result.results.empty:
        raise ValueError("There are no results to report: no job has finished yet.")
    found = Findings(result.results, result.ceiling, dict(result.config), metrics)
    return [
        Heading(_title(found), 1),
        Text(_facts(found)),
        *_sections.warning_section(found, getattr(result, "missing", [])),
        *_sections.summary_section(found),
        *_sections.comparison_section(found),
        *_sections.population_section(found),
        *_sections.effect_section(found, result),
        *_sections.indistinguishable_section(found),
        *_sections.failure_section(found),
        *_method.stability_section(found),
        *_method.cost_section(found),
        *_method.metric_section(found),
        *_method.origin_section(found),
    ]


def _title(found: Findings) -> str:
    if found.config.get("title"):
        return plain(found.config["title"])
    task = found.config.get("task") or found.results["task"].iloc[0]
    return f"Benchmark: {plain(task)}"


def _facts(found: Findings) -> str:
    results = found.results
    contexts = results["context"].nunique()
    where = f" in {contexts} contexts" if contexts > 1 else ""
    parts = [
        plural(results["perturbation"].nunique(), "perturbation") + where,
        plural(len(found.models), "model") + " and " + plural(int(found.flags.sum()), "simple baseline"),
        plural(int(results.groupby("seed")["fold"].nunique().max()), "fold"),
        plural(results["seed"].nunique(), "seed"),
        f"{found.config.get('controls', 'independent')} controls",
    ]
    return ", ".join(parts) + "."
