"""The table as text, and the report as one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import numpy as np

from scvi_causal.metrics import METRICS

from ._models import CEILING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

# what fits beside each other in a terminal; the report and table.csv hold all
TERMINAL_COLUMNS = ("r2_de", "pearson_effect", "mse_ratio", "energy", "variance_ratio", "seconds")


def title_of(column: str) -> str:
    """Heading of a column."""
    return METRICS[column].title if column in METRICS else column


def better(column: str) -> str:
    """In which direction a column is better."""
    if column not in METRICS:
        return ""
    metric = METRICS[column]
    return f"-> {metric.best:g}" if metric.better == "closer" else f"{metric.better}"


def format_value(value: float, column: str) -> str:
    """A number as tables show it."""
    if not np.isfinite(value):
        return "-"
    if column == "seconds":
        return f"{value:.1f}"
    return f"{value:.3f}" if abs(value) >= 0.0095 or value == 0 else f"{value:.4f}"


def best_rows(table: pd.DataFrame, column: str) -> set[str]:
    """Models that are best in a column; the noise ceiling is no competitor."""
    values = table.loc[table.index != CEILING, column].dropna()
    if column not in METRICS or len(values) < 2:
        return set()
    metric = METRICS[column]
    score = {"higher": values, "lower": -values, "closer": -(values - metric.best).abs()}[metric.better]
    return set(score.index[score == score.max()])


def text_table(table: pd.DataFrame, columns: tuple[str, ...] = TERMINAL_COLUMNS) -> str:
    """Table for a terminal: one row per model, the best marked with a star, the noise ceiling last under a rule."""
    columns = tuple(column for column in columns if column in table)
    best = {column: best_rows(table, column) for column in columns}
    rows = [["", *(title_of(column) for column in columns)], ["better:", *(better(column) for column in columns)]]
    for name, row in table.iterrows():
        marks = [format_value(row[c], c) + ("*" if name in best[c] else " ") for c in columns]
        rows.append([str(name), *marks])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "-" * max(len(line) for line in lines)
    body = lines[2:]
    position = next((i for i, name in enumerate(table.index) if name == CEILING), None)
    if position is not None:
        body.insert(position, rule)
    return "\n".join([lines[0], lines[1], rule, *body])


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("scvi-causal", "scvi-tools", "torch", "anndata", "scanpy", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
tr.ceiling td { border-top: 2px solid #222; font-style: italic; }
tr.direction td { color: #666; font-size: .85em; }
.wide { overflow-x: auto; } img { max-width: 100%; } figure { margin: 1.5rem 0; } figcaption, .small { color: #555; font-size: .9em; }
dl { display: grid; grid-template-columns: max-content auto; gap: .3rem 1rem; } dt { font-weight: 600; } dd { margin: 0; }
pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; }
"""


def write_html(
    path: Path,
    *,
    title: str,
    facts: dict[str, str],
    table: pd.DataFrame,
    figures: list[tuple[Path, str]],
    left_out: dict[str, str],
    command: str,
    seed: int,
) -> None:
    """Write the report: facts, table, what its columns mean, pictures, command, seed and versions."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in facts.items())
    parts = [f"<h1>{html.escape(title)}</h1><dl>{items}</dl>"]
    parts += ['<h2>Scores</h2><div class="wide">', _html_table(table), "</div>", _legend(table)]
    if left_out:
        items = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in left_out.items())
        parts.append(f"<p>Not in the table:</p><ul>{items}</ul>")
    for picture, caption in figures:
        encoded = base64.b64encode(picture.read_bytes()).decode()
        alt = html.escape(caption, quote=True)
        parts.append(
            f'<figure><img src="data:image/png;base64,{encoded}" alt="{alt}"><figcaption>{alt}</figcaption></figure>'
        )
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    parts.append(f"<h2>How it was made</h2><pre>{html.escape(command)}</pre>")
    parts.append(f'<p class="small">Seed {seed}. {html.escape(used)}.</p>')
    body = "\n".join(parts)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _html_table(table: pd.DataFrame) -> str:
    columns = list(table.columns)
    head = "".join(f"<th>{html.escape(title_of(column))}</th>" for column in columns)
    direction = "".join(f"<td>{html.escape(better(column))}</td>" for column in columns)
    lines = [f"<table><tr><th>model</th>{head}</tr>", f'<tr class="direction"><td>better</td>{direction}</tr>']
    best = {column: best_rows(table, column) for column in columns}
    for name, row in table.iterrows():
        cells = [
            f"<td><b>{format_value(row[c], c)}</b></td>" if name in best[c] else f"<td>{format_value(row[c], c)}</td>"
            for c in columns
        ]
        style = ' class="ceiling"' if name == CEILING else ""
        lines.append(f"<tr{style}><td>{html.escape(str(name))}</td>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])


def _legend(table: pd.DataFrame) -> str:
    items = [
        f"<li><b>{html.escape(m.title)}</b>: {html.escape(m.meaning)}</li>" for m in METRICS.values() if m.name in table
    ]
    return (
        f"<ul class='small'>{''.join(items)}<li><b>{CEILING}</b>: one half of the real cells as a prediction of the other "
        "half. Both halves are noisy, so a prediction without noise of its own can come out above it.</li></ul>"
    )
