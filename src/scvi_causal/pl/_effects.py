"""Observed against predicted effects, one point per gene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._style import COLORS, axes_or_new, despine, label_points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes


def effects(
    observed: np.ndarray,
    predicted: np.ndarray,
    gene_names: Sequence[str] | None = None,
    *,
    n_top: int = 12,
    n_de: int = 50,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Observed against predicted effect of every gene, with the strongest genes labelled.

    Points on the dashed diagonal are predicted exactly; below it (for positive effects) the prediction is too weak.

    Parameters
    ----------
    observed
        (genes,) mean of the perturbed cells minus mean of control cells that no model used.
    predicted
        (genes,) mean of the predicted cells minus mean of the control cells they started from.
    gene_names
        (genes,) names; without them nothing is labelled.
    n_top
        How many of the genes with the largest observed effect are labelled.
    n_de
        How many of them are drawn in the strong colour.
    limits
        Of both axes; ``None`` fits the points. Give the same ones to panels that are compared by eye.
    title
        Of the axes.
    ax
        Axes to draw into; ``None`` makes a figure of its own.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If the lengths differ.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal import pl
    >>> ax = pl.effects(np.array([0.0, 1.0, -2.0]), np.array([0.1, 0.8, -1.5]), ["A", "B", "C"])
    >>> ax.get_xlabel()
    'observed effect'
    """
    observed, predicted = np.asarray(observed, dtype=float).ravel(), np.asarray(predicted, dtype=float).ravel()
    lengths = {"observed": observed.size, "predicted": predicted.size}
    if gene_names is not None:
        lengths["gene_names"] = len(gene_names)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"One value per gene is needed in the same order, got lengths {lengths}.")

    ax = axes_or_new(ax, (5, 5))
    order = np.argsort(-np.abs(observed), kind="stable")
    strong, weak = order[:n_de], order[n_de:]
    ax.scatter(observed[weak], predicted[weak], s=8, color=COLORS["control"], alpha=0.6, linewidth=0, rasterized=True)
    ax.scatter(observed[strong], predicted[strong], s=18, color=COLORS["observed"], alpha=0.85, linewidth=0)
    _draw_guides(ax, limits or common_limits(observed, predicted))
    # what differs from a constant by rounding alone has no correlation
    if observed.std() > 0 and predicted.std() > 1e-5 * observed.std():
        r = np.corrcoef(observed, predicted)[0, 1]
        ax.text(0.98, 0.03, f"r = {r:.3f}", transform=ax.transAxes, ha="right", va="bottom")
    ax.set(xlabel="observed effect", ylabel="predicted effect")
    ax.set_title(title or "", parse_math=False)
    despine(ax)
    if gene_names is not None and n_top > 0:
        top = order[:n_top]
        names = [str(gene_names[i]) for i in top]
        label_points(ax, observed[top], predicted[top], names, np.column_stack([observed, predicted])[strong])
    return ax


def common_limits(*arrays: np.ndarray) -> tuple[float, float]:
    """Limits that hold all values and zero, with a margin."""
    values = np.concatenate([*arrays, [0.0]])
    margin = 0.08 * max(float(np.ptp(values)), 1e-6)
    return float(values.min() - margin), float(values.max() + margin)


def _draw_guides(ax: Axes, limits: tuple[float, float]) -> None:
    """Equal scales on both axes, the diagonal, and the two zero lines."""
    ax.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    ax.plot(limits, limits, color="0.4", linewidth=1, linestyle="--", zorder=0.5)
    ax.set(xlim=limits, ylim=limits, aspect="equal")
