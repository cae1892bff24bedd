"""Scores of every perturbation: models as markers, the best baseline as a tick, the noise ceiling as a band."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_causal.data._messages import did_you_mean, listed

from ._style import CATEGORIES, axes_or_new, despine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

# shapes as well as colours, so that models are told apart in grey too
MARKERS = ("o", "D", "s", "^", "v", "P", "X", "*")
BAND, TICK = "#D9D9D9", "#7F7F7F"
MEAN, OTHERS = "mean", "other baselines"


def scores(
    values: pd.DataFrame,
    *,
    baseline: str | None = None,
    ceiling: pd.DataFrame | None = None,
    muted: Sequence[str] = (),
    better: str = "higher",
    sort: bool = True,
    max_rows: int = 40,
    limits: tuple[float, float] | None = None,
    xlabel: str | None = None,
    title: str | None = None,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Dot plot with a row per population: where each model lies between a simple baseline and the noise ceiling.

    What can be predicted best is on top; below a line are the means over *all* populations.

    Parameters
    ----------
    values
        (populations, models) one metric. The names of the populations are the index; the levels of a MultiIndex are joined.
    baseline
        The column that is drawn as a black tick, not as a marker.
    ceiling
        By population: ``value``, and ``low`` and ``high`` where the interval is known.
    muted
        Columns that are drawn as small grey rings, under one name: the other baselines.
    better
        ``"higher"``, ``"lower"`` or ``"closer"``: what "best" means in the order of the rows.
    sort
        Rows by their ceiling (without one, by their mean); else, and where the best value lies in between, in the order of
        the index.
    max_rows
        With more populations, this many are drawn, evenly spaced in that order; the title says so.
    limits
        Of the axis; ``None`` fits what is drawn. Markers far outside of everything else are drawn at the edge as arrows.
    xlabel, title
        Texts of the axes.
    legend
        Whether to explain the markers above the axes.
    ax
        Axes to draw into; ``None`` makes a figure of its own, whose height grows with the number of rows.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If ``values`` is empty, ``baseline`` or one of ``muted`` is none of its columns, or ``ceiling`` has no column ``value``.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal import pl
    >>> values = pd.DataFrame({"SCCVAE": [0.6, 0.8], "PerturbedMean": [0.5, 0.4]}, index=["STAT1", "JAK2"])
    >>> ceiling = pd.DataFrame({"value": [0.7, 0.9], "low": [0.6, 0.8], "high": [0.8, 0.95]}, index=values.index)
    >>> ax = pl.scores(values, baseline="PerturbedMean", ceiling=ceiling, xlabel="Pearson of effects")
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['JAK2', 'STAT1', 'mean']
    """
    _check(values, [*([] if baseline is None else [baseline]), *muted], ceiling)
    if ceiling is not None:
        ceiling = ceiling.reindex(values.index)
    order = _order(values, ceiling, better) if sort else np.arange(len(values))
    drawn = order[np.unique(np.linspace(0, len(order) - 1, min(max_rows, len(order))).round().astype(int))]
    ax = axes_or_new(ax, (6.0, 1.3 + 0.2 * (len(drawn) + 1)))
    limits = limits or _limits(values.iloc[drawn], ceiling if ceiling is None else ceiling.iloc[drawn])

    y = np.append(np.arange(len(drawn)), len(drawn) + 0.4)
    table = pd.concat([values.iloc[drawn], values.mean().to_frame(MEAN).T])
    others = [model for model in values.columns if model != baseline and model not in set(muted)]
    for number, model in enumerate(others):
        _draw_model(ax, table[model].to_numpy(dtype=float), y, number, str(model), limits)
    if muted:
        x = table[list(muted)].to_numpy(dtype=float)
        _draw_muted(ax, x.ravel(), np.repeat(y, x.shape[1]), limits)
    if baseline is not None:
        ax.plot(table[baseline], y, "|", color="black", markersize=11, markeredgewidth=1.8, label=baseline, zorder=3)
    if ceiling is not None:
        _draw_ceiling(ax, pd.concat([ceiling.iloc[drawn], ceiling[["value"]].mean().to_frame(MEAN).T]), y)
    names = [_name(label) for label in values.index[drawn]]
    ax.axhline(len(drawn) - 0.3, color="0.6", linewidth=0.8)
    ax.set_yticks(y, [*names, MEAN], parse_math=False)  # a name may hold dollar signs
    ax.get_yticklabels()[-1].set_fontweight("bold")
    ax.set(ylim=(len(drawn) + 1.0, -0.7), xlim=limits, xlabel=xlabel)
    if limits[0] < 0 < limits[1]:
        ax.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.tick_params(axis="y", length=0)
    despine(ax)
    left_out = "" if len(drawn) == len(order) else f"{len(drawn)} of {len(order)} populations"
    _titles(ax, title, left_out, n_entries=len(ax.get_legend_handles_labels()[1]) if legend else 0)
    return ax


def _check(values: pd.DataFrame, named: list[str], ceiling: pd.DataFrame | None) -> None:
    if values.empty:
        raise ValueError(f"values has {values.shape[0]} populations and {values.shape[1]} models: nothing to draw.")
    missing = [name for name in named if name not in values.columns]
    if missing:
        hint = did_you_mean(missing[0], values.columns)
        raise ValueError(f"{listed(missing)} is not among the columns {listed(values.columns)}.{hint}")
    if ceiling is not None and "value" not in ceiling:
        raise ValueError(f"ceiling needs a column 'value', it has {listed(ceiling.columns)}.")


def _name(label) -> str:
    parts = label if isinstance(label, tuple) else (label,)
    return " · ".join(str(part) for part in parts if str(part))


def _order(values: pd.DataFrame, ceiling: pd.DataFrame | None, better: str) -> np.ndarray:
    if better == "closer":
        return np.arange(len(values))
    by = values.mean(axis=1) if ceiling is None else ceiling["value"]
    sign = 1.0 if better == "lower" else -1.0
    return np.argsort(sign * by.to_numpy(dtype=float), kind="stable")  # NaN comes last either way


def _limits(values: pd.DataFrame, ceiling: pd.DataFrame | None) -> tuple[float, float]:
    """Limits that hold everything but what lies far outside of the bulk; ends of intervals count as little."""
    points = values.to_numpy(dtype=float).ravel()
    kept, ends = np.empty(0), np.empty(0)
    if ceiling is not None:
        kept = ceiling["value"].to_numpy(dtype=float)
        ends = ceiling.drop(columns="value").to_numpy(dtype=float).ravel()
    points, kept, ends = (x[np.isfinite(x)] for x in (points, kept, ends))
    bulk = np.concatenate([points, kept])
    if bulk.size == 0:
        return -1.0, 1.0
    low, high = np.quantile(bulk, [0.1, 0.9])
    reach = 2 * max(high - low, 1e-6)
    near = np.concatenate([points, ends])
    shown = np.concatenate([kept, near[(near >= low - reach) & (near <= high + reach)]])
    margin = 0.04 * max(float(np.ptp(shown)), 1e-6)
    return float(shown.min() - margin), float(shown.max() + margin)


def _draw_ceiling(ax: Axes, ceiling: pd.DataFrame, y: np.ndarray) -> None:
    value = ceiling["value"].to_numpy(dtype=float)
    if {"low", "high"} <= set(ceiling.columns):
        low, high = (ceiling[side].to_numpy(dtype=float) for side in ("low", "high"))
        ax.barh(y, high - low, left=low, height=0.62, color=BAND, linewidth=0, zorder=1, label="noise ceiling (95 %)")
        ax.plot(value, y, "|", color=TICK, markersize=8, markeredgewidth=1.4, zorder=2)
    else:
        ax.plot(value, y, "|", color=TICK, markersize=10, markeredgewidth=2.5, zorder=2, label="noise ceiling")


def _draw_model(ax: Axes, x: np.ndarray, y: np.ndarray, number: int, label: str, limits: tuple[float, float]) -> None:
    style = {"color": CATEGORIES[number % len(CATEGORIES)], "zorder": 5 - 0.01 * number, "markersize": 6.5}
    style |= {"markeredgecolor": "white", "markeredgewidth": 0.6}
    _draw(ax, x, y, MARKERS[number % len(MARKERS)], label, limits, style)


def _draw_muted(ax: Axes, x: np.ndarray, y: np.ndarray, limits: tuple[float, float]) -> None:
    style = {"color": TICK, "markerfacecolor": "white", "markersize": 4.5, "markeredgewidth": 1.0, "zorder": 2.5}
    _draw(ax, x, y, "o", OTHERS, limits, style)


def _draw(ax: Axes, x: np.ndarray, y: np.ndarray, marker: str, label: str, limits, style: dict) -> None:
    """Markers within the limits, and arrows at the edge for what lies beyond."""
    style = style | {"linestyle": "none"}
    inside = (x >= limits[0]) & (x <= limits[1])
    ax.plot(x[inside], y[inside], marker=marker, label=label, **style)
    for beyond, at, arrow in ((x < limits[0], limits[0], "<"), (x > limits[1], limits[1], ">")):
        if beyond.any():  # an empty line that is not clipped would take part in the layout, at (0, 0)
            ax.plot(np.full(beyond.sum(), at), y[beyond], marker=arrow, clip_on=False, **style)


def _titles(ax: Axes, title: str | None, left_out: str, n_entries: int) -> None:
    """Legend above the axes, and the title above the legend."""
    columns = max(1, min(n_entries, 3))
    if n_entries:
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
        box = ax.legend(frameon=False, ncols=columns, fontsize=9, handletextpad=0.4, columnspacing=1.2, **place)
        for entry in box.get_texts():
            entry.set_parse_math(False)
    text = " ".join(part for part in (title, f"({left_out})" if left_out else "") if part)
    if text:
        ax.set_title(text, loc="left", pad=8 + 15 * int(np.ceil(n_entries / columns)))
