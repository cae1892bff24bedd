"""Colours and small helpers shared by the pictures. Nothing global (``rcParams``) is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito, "Color universal design": told apart with any common colour blindness, and in grey
COLORS = {"control": "#999999", "observed": "#0072B2", "counterfactual": "#E69F00"}
CATEGORIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def palette(n: int) -> list:
    """Return ``n`` colours: Okabe-Ito as far as they go, then evenly spaced steps of a perceptually uniform map."""
    if n <= len(CATEGORIES):
        return list(CATEGORIES[:n])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](x)) for x in np.linspace(0, 0.95, n)]


def axes_or_new(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """Return the given axes, or those of a new figure that lays itself out."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def despine(ax: Axes) -> None:
    """Leave only the left and the lower edge of the frame."""
    ax.spines[["top", "right"]].set_visible(False)


def label_points(ax: Axes, x: np.ndarray, y: np.ndarray, labels: list[str], obstacles: np.ndarray) -> None:
    """Write each label beside its point where it covers the fewest labels and points.

    A greedy choice among positions on rings around the point. Enough for a dozen labels, and needs no further package.

    Parameters
    ----------
    ax
        With its final limits.
    x, y
        (labels,) positions.
    labels
        The texts, the most important first: they choose their place first.
    obstacles
        (points, 2) data coordinates that are better not covered.
    """
    from matplotlib.text import Text

    figure = ax.get_figure()
    if figure.get_layout_engine() is None:
        ax.apply_aspect()
    else:
        figure.draw_without_rendering()  # a constrained layout settles the axes only now
    renderer = figure.canvas.get_renderer()
    points = ax.transData.transform(obstacles)
    frame = ax.get_window_extent(renderer)
    taken: list[np.ndarray] = []
    for xi, yi, label in zip(x, y, labels, strict=True):
        text = ax.annotate(
            label,
            (xi, yi),
            parse_math=False,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2},
            zorder=4,
        )
        extent = Text.get_window_extent(text, renderer)  # of the words alone, without the line
        half = np.array([extent.width, extent.height]) / 2 + 1
        scale = figure.dpi / 72
        here = ax.transData.transform((xi, yi))
        best = (np.inf, None, None)
        for radius in (9, 15, 24, 36, 52, 72):
            for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False) + np.pi / 4:
                direction = np.array([np.cos(angle), np.sin(angle)])
                offset = direction * (radius + half / scale * (0.9, 0.6))
                centre = here + offset * scale
                cost = _cost(centre, half, taken, points, frame) + radius / 6
                if cost < best[0]:
                    best = (cost, offset, centre)
        text.set_position(tuple(best[1]))
        taken.append(np.concatenate([best[2] - half, best[2] + half]))


def _cost(centre, half, taken, points, frame) -> float:
    low, high = centre - half, centre + half
    outside = (low < (frame.x0, frame.y0)).any() or (high > (frame.x1, frame.y1)).any()
    overlaps = sum(bool((low < box[2:]).all() and (high > box[:2]).all()) for box in taken)
    covered = int(((points > low) & (points < high)).all(axis=1).sum())
    return 1000 * outside + 100 * overlaps + 3 * covered
