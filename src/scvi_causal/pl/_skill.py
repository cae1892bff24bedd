"""Models against metrics on the scale where 0 is the best simple baseline and 1 the noise ceiling."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from ._style import axes_or_new

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

WORSE, BETTER = "#D55E00", "#0072B2"  # of Okabe and Ito, through white: not red and green


def skill(
    table: pd.DataFrame,
    raw: pd.DataFrame | None = None,
    *,
    title: str | None = None,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Heat map of skill: one row per model, one column per metric.

    Blue is better than the best simple baseline, orange is worse; colours end at -1 and 1, numbers do not. A dash is where
    skill is not known: nothing was scored, or baseline and ceiling cannot be told apart.

    Parameters
    ----------
    table
        (models, metrics) skill.
    raw
        (models, metrics) the scores themselves, written in small below the skill.
    title
        Of the axes.
    colorbar
        Whether to draw the scale of colours.
    ax
        Axes to draw into; ``None`` makes a figure of its own.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If there is nothing to draw, or ``raw`` lacks a model or metric of ``table``.

    Examples
    --------
    >>> import pandas as pd
    >>> from scvi_causal import pl
    >>> table = pd.DataFrame({"Pearson": [0.4, 0.0], "MSE": [-1.3, 0.0]}, index=["SCCVAE", "PerturbedMean"])
    >>> [text.get_text() for text in pl.skill(table).texts]
    ['0.40', '−1.30', '0.00', '0.00']
    """
    if table.empty:
        raise ValueError(f"table has {table.shape[0]} models and {table.shape[1]} metrics: nothing to draw.")
    if raw is not None:
        missing = {"models": table.index.difference(raw.index), "metrics": table.columns.difference(raw.columns)}
        missing = {what: list(names) for what, names in missing.items() if len(names)}
        if missing:
            raise ValueError(f"raw lacks some of what is in table: {missing}.")
        raw = raw.loc[table.index, table.columns]
    n_models, n_metrics = table.shape
    ax = axes_or_new(ax, (2.2 + 1.0 * n_metrics, 1.5 + (0.5 if raw is None else 0.58) * n_models))
    values = table.to_numpy(dtype=float)
    cmap = _diverging()
    image = ax.imshow(np.clip(values, -1, 1), cmap=cmap, vmin=-1, vmax=1, aspect="auto")
    for i, j in np.ndindex(values.shape):
        _write(ax, j, i, values[i, j], None if raw is None else float(raw.iat[i, j]), cmap)
    ax.set_xticks(range(n_metrics), [_wrap(str(name)) for name in table.columns], fontsize=9, parse_math=False)
    ax.set_yticks(range(n_models), [str(name) for name in table.index], parse_math=False)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    # white lines between the cells
    ax.set_xticks(np.arange(n_metrics + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(n_models + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    if colorbar:
        bar = ax.get_figure().colorbar(image, ax=ax, shrink=0.9, aspect=20, ticks=[-1, 0, 1], pad=0.02)
        bar.ax.set_yticklabels(["≤ −1", "0  best baseline", "1  noise ceiling"], fontsize=9)
        bar.outline.set_visible(False)
    if title:
        ax.set_title(title, loc="left", pad=10)
    return ax


def _diverging() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    cmap = LinearSegmentedColormap.from_list("scvi_causal_skill", [WORSE, "#F7F7F7", BETTER])
    cmap = cmap.with_extremes(bad="#E8E8E8")
    return cmap


def _write(ax: Axes, x: int, y: int, value: float, raw: float | None, cmap: Colormap) -> None:
    known = np.isfinite(value)
    r, g, b, _ = cmap((np.clip(value, -1, 1) + 1) / 2) if known else (0.9, 0.9, 0.9, 1)
    color = "white" if 0.299 * r + 0.587 * g + 0.114 * b < 0.55 else "black"
    text = f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−") if known else "–"
    raw = raw if raw is not None and np.isfinite(raw) else None
    shift = 0.0 if raw is None else 0.14
    # inside the axes: to measure each of them for the layout would take longer than to draw all
    style = {"ha": "center", "va": "center", "color": color, "in_layout": False}
    ax.text(x, y - shift, text, fontsize=10, **style)
    if raw is not None:
        ax.text(x, y + 0.24, f"{raw:#.3g}".replace("-", "−"), fontsize=7.5, **style)


def _wrap(name: str, width: int = 12) -> str:
    return "\n".join(textwrap.wrap(name, width, break_long_words=False))
