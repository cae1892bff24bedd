"""The pictures of a report, each as a small PNG. Figures are made outside pyplot: no window, no global state."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from scvi_causal import pl
from scvi_causal.data._messages import plural
from scvi_causal.metrics import METRICS

from ._blocks import Picture, plain
from ._findings import CEILING, title_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ._findings import Findings

MAX_BYTES = 95_000
POPULATION = ["perturbation", "context"]
BEST_BASELINE, OTHERS = "best simple baseline", "other baselines"


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """A figure of its own. One that lays itself out is the more expensive the more labels it has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure, max_bytes: int = MAX_BYTES) -> bytes:
    """PNG of at most about 95 kB with a palette of 256 colours; if that is too much, the resolution gives way."""
    from PIL import Image

    for dpi in (110, 90, 75, 60):
        small = io.BytesIO()
        figure.set_dpi(dpi)
        figure.canvas.draw()
        # the canvas knows its size in pixels; inches times dpi may be off by one, and every line by a pixel more
        image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        image = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        image.save(small, format="png", optimize=True)
        if small.tell() <= max_bytes:
            break
    return small.getvalue()


def label_of(population: tuple) -> str:
    """Perturbation and context as one name."""
    return " · ".join(filter(None, map(str, population)))


# ---------------------------------------------------------------------- skill


def skill_picture(found: Findings) -> Picture | None:
    """Heat map of models and metrics; None where no skill is known."""
    table = found.summary.drop(index=CEILING).rename(index=found.label)
    shown = [m for m in found.metrics if table[f"skill_{m}"].notna().any()]
    if not shown:
        return None
    titles = [title_of(m) for m in shown]
    skills = table[[f"skill_{m}" for m in shown]].set_axis(titles, axis=1)
    figure = new_figure(2.8 + 0.95 * len(shown), 1.3 + 0.55 * len(table))
    pl.skill(skills, table[shown].set_axis(titles, axis=1), ax=figure.subplots())
    caption = (
        "Skill of every model (large) and its raw score (small): 0 is the best simple baseline on that metric, 1 the noise "
        "ceiling. Blue is better than that baseline, orange worse. Metrics whose scale cannot be read are left out."
    )
    alt = f"Heat map of the skill of {plural(len(table), 'model')} on {plural(len(shown), 'metric')}, as in the table above"
    return Picture("skill.png", to_png(figure), alt, caption)


# ---------------------------------------------------------------------- every population


def score_pictures(found: Findings, max_rows: int = 40, panels: int = 3) -> list[Picture]:
    """Dot plots over the populations of the main tables, some metrics side by side with the same rows."""
    grids = {metric: found.grid(metric) for metric in found.metrics}
    grids = {metric: grid for metric, grid in grids.items() if grid[0].notna().any(axis=None)}
    if not grids:
        return []
    order, metrics = _order_of_rows(grids), list(grids)
    parts = [metrics[i : i + panels] for i in range(0, len(metrics), panels)]
    return [
        _score_picture(found, {m: grids[m] for m in part}, order, max_rows, f"scores_{number}.png")
        for number, part in enumerate(parts, start=1)
    ]


def _order_of_rows(grids: dict) -> pd.Index:
    """Populations, those with the highest ceiling of the correlation of effects (else of the first metric) on top."""
    metric = "pearson_effect" if "pearson_effect" in grids else next(iter(grids))
    values, ceiling = grids[metric]
    by = values.mean(axis=1) if ceiling.empty else ceiling["value"].reindex(values.index)
    return by.sort_values(ascending=METRICS[metric].better == "lower", kind="stable").index


def _score_picture(found: Findings, grids: dict, order: pd.Index, max_rows: int, name: str) -> Picture:
    # where there is one perturbation its name says nothing
    single = order.get_level_values("perturbation").nunique() == 1 < len(order)
    labels = [label_of(population[1:] if single else population) for population in order]
    # inches: fixed margins, since nothing but the length of the names changes
    left, width, foot = 0.25 + 0.08 * max(5, *map(len, labels)), 2.9, 0.5
    columns = min(4, len(grids) + 1)
    n_entries = int((found.summary["scored"] > 0).sum()) - 1  # without the ceiling: that has an entry in any case
    n_entries = min(n_entries, len(found.models) + 3) + 1
    head = 0.4 + 0.22 * -(-n_entries // columns)
    size = (left + width * len(grids), head + 0.2 * (min(max_rows, len(order)) + 1.7) + foot)
    figure = new_figure(*size, layout=None)
    margins = {
        "left": left / size[0],
        "right": 1 - 0.12 / size[0],
        "bottom": foot / size[1],
        "top": 1 - head / size[1],
    }
    axes = figure.subplots(1, len(grids), squeeze=False, gridspec_kw=margins | {"wspace": 0.08})[0]
    handles, baselines = {}, {}
    for ax, (metric, (values, ceiling)) in zip(axes, grids.items(), strict=True):
        baselines[metric] = _draw_scores(ax, found, metric, values.reindex(order), ceiling, labels, max_rows)
        handles |= {text: handle for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
        ax.tick_params(labelleft=ax is axes[0])
    if "noise ceiling (95 %)" in handles:  # metrics without an interval have the same tick
        handles.pop("noise ceiling", None)
    last = [text for text in (BEST_BASELINE, OTHERS, "noise ceiling (95 %)", "noise ceiling") if text in handles]
    entries = {text: handles[text] for text in [*(t for t in handles if t not in last), *last]}
    place = {"loc": "upper left", "frameon": False, "fontsize": 9, "handletextpad": 0.4, "columnspacing": 1.4}
    legend = figure.legend(entries.values(), entries.keys(), ncols=columns, **place)
    for entry in legend.get_texts():
        entry.set_parse_math(False)

    means = "; ".join(
        f"{plain(title_of(m))}: {plain(METRICS[m].meaning)}" + (f" (best baseline: {plain(b)})" if b else "")
        for m, b in baselines.items()
    )
    some = f" {max_rows} of {len(order)} populations, evenly spaced by ceiling." if len(order) > max_rows else ""
    alt = f"Dot plots of {', '.join(map(title_of, grids))} for {plural(len(order), 'population')}"
    return Picture(name, to_png(figure), plain(alt), f"{means}.{some} Last row: means over all populations.")


def _draw_scores(
    ax: Axes, found: Findings, metric: str, values, ceiling, labels: list[str], max_rows: int
) -> str | None:
    """One panel; returns the name of the best baseline."""
    baseline = found.scales.loc[metric, "baseline"]
    baseline = baseline if baseline in values else None
    if not ceiling.empty:
        ceiling = ceiling.reindex(values.index).set_axis(labels, axis=0)
    scored = [m for m in values if found.summary.loc[m, "scored"] > 0]
    # predicting no change keeps a marker of its own
    muted = [m for m in scored if found.flags[m] and m not in (baseline, found.no_change)]
    names = {m: BEST_BASELINE if m == baseline else found.label(m) for m in scored}
    described = METRICS[metric]
    pl.scores(
        values[scored].set_axis(labels, axis=0).rename(columns=names),
        baseline=BEST_BASELINE if baseline else None,
        ceiling=None if ceiling.empty else ceiling,
        muted=[names[m] for m in muted],
        sort=False,
        max_rows=max_rows,
        xlabel=f"best: {described.best:g}" if described.better == "closer" else f"{described.better} is better",
        legend=False,
        ax=ax,
    )
    ax.set_title(described.title, loc="left", fontsize=10)
    return baseline


# ---------------------------------------------------------------------- effects


def effect_picture(
    found: Findings, effects: pd.DataFrame, populations: list[tuple], models: list[str]
) -> Picture | None:
    """Observed against predicted effect of every gene: a column per population, a row per model."""
    # the mean over seeds, as in the tables
    means = effects.groupby(level=["model", *POPULATION], observed=True).mean()
    have = set(means.index)
    populations = [p for p in populations if ("observed", *p) in have]
    models = [m for m in models if any((m, *p) in have for p in populations)]
    if not populations or not models:
        return None
    n_de = int(found.config.get("n_de") or 50)
    figure = new_figure(3.5 * len(populations), 3.5 * len(models), layout=None)
    margins = {
        "left": 0.22 / len(populations),
        "bottom": 0.15 / len(models),
        "right": 0.99,
        "top": 1 - 0.1 / len(models),
    }
    spaces = {"wspace": 0.2, "hspace": 0.15}
    axes = figure.subplots(len(models), len(populations), squeeze=False, gridspec_kw=margins | spaces)
    for j, population in enumerate(populations):
        observed = means.loc[("observed", *population)].to_numpy(dtype=float)
        rows = {m: means.loc[(m, *population)].to_numpy(dtype=float) for m in models if (m, *population) in have}
        limits = _limits(observed, *rows.values())
        for i, model in enumerate(models):
            title = label_of(population) if i == 0 else None
            if model not in rows or not np.isfinite(rows[model]).all():
                axes[i, j].set_axis_off()
                continue
            options = {"n_top": 6, "n_de": n_de, "limits": limits, "title": title}
            pl.effects(observed, rows[model], means.columns, **options, ax=axes[i, j])
            axes[i, j].set_ylabel(f"predicted by {model}" if j == 0 else "", parse_math=False)
            axes[i, j].set_xlabel("observed effect" if i == len(models) - 1 else "")
    caption = (
        "Effect on every gene (difference of mean log1p expression) of the perturbation with the highest, the middle and the "
        "lowest noise ceiling: observed (held-out cells against control cells no model saw) and predicted; mean over seeds. "
        f"Blue: the {n_de} genes that change most. r: Pearson correlation over all genes."
    )
    names = ", ".join(map(label_of, populations))
    return Picture("effects.png", to_png(figure), plain(f"Observed against predicted effects of {names}"), caption)


def _limits(*arrays: np.ndarray) -> tuple[float, float]:
    """The same limits for all panels of a population, so that they can be compared by eye."""
    values = np.concatenate([*(a[np.isfinite(a)] for a in arrays), [0.0]])
    margin = 0.08 * max(float(np.ptp(values)), 1e-6)
    return float(values.min() - margin), float(values.max() + margin)


def populations_to_show(found: Findings, metric: str = "pearson_effect", n: int = 3) -> list[tuple[str, str]]:
    """Populations with the highest, the middle and the lowest ceiling."""
    rows = found.top
    column = metric if metric in rows and rows[metric].notna().any() else "n_observed"
    if rows.empty or column not in rows:
        return []
    by = rows.groupby(POPULATION, observed=True)[column].mean().dropna().sort_values(ascending=False, kind="stable")
    return [by.index[i] for i in np.unique(np.linspace(0, len(by) - 1, min(n, len(by))).round().astype(int))]


def models_to_show(found: Findings, metric: str = "pearson_effect") -> list[str]:
    """The model with the best median skill (else the first that was scored), and the best baseline on the metric."""
    table = found.summary.drop(index=CEILING)
    scored = table[(table["scored"] > 0) & ~table["leak"].astype(bool) & ~table["is_baseline"].astype(bool)]
    skills = scored[[f"skill_{m}" for m in found.metrics]].median(axis=1)
    chosen = [skills.idxmax() if skills.notna().any() else scored.index[0]] if len(scored) else []
    known = found.scales["baseline"].dropna()
    if len(known):
        chosen.append(known.get(metric, known.iloc[0]))
    return chosen
