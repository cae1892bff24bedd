"""Distributions of single genes in control, observed and counterfactual cells."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ._style import COLORS, axes_or_new, despine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes


def genes(
    control,
    observed,
    counterfactual,
    gene_names: Sequence[str],
    *,
    genes: Sequence[str] | None = None,
    n_top: int = 8,
    ylabel: str = "log1p expression",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Violins of the genes that change most: control, observed and counterfactual cells side by side, with their means.

    Parameters
    ----------
    control, observed, counterfactual
        (cells, genes) populations on the same scale, dense or sparse; the counterfactual as draws of cells.
    gene_names
        Names of the columns.
    genes
        Which genes to draw; ``None`` takes those with the largest difference of observed and control mean.
    n_top
        How many of them.
    ylabel, title
        Texts of the axes.
    ax
        Axes to draw into; ``None`` makes a figure of its own.

    Returns
    -------
    The axes.

    Raises
    ------
    ValueError
        If a gene is not among ``gene_names``, or the numbers of columns differ.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal import pl
    >>> control, observed, predicted = np.random.default_rng(0).normal(size=(3, 20, 4))
    >>> ax = pl.genes(control, observed + 1, predicted + 1, ["A", "B", "C", "D"], genes=["B", "D"])
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['B', 'D']
    """
    populations = {"control": control, "observed": observed, "counterfactual": counterfactual}
    names = [str(name) for name in gene_names]
    wrong = {name: x.shape[1] for name, x in populations.items() if x.shape[1] != len(names)}
    if wrong:
        raise ValueError(
            f"gene_names has {len(names)} entries, but these populations have other numbers of genes: {wrong}."
        )
    columns = _pick(genes, names, n_top, populations)

    ax = axes_or_new(ax, (max(4.0, 0.95 * len(columns) + 1.6), 3.6))
    width = 0.27
    for position, (name, x) in enumerate(populations.items()):
        values = _dense_columns(x, columns)
        centres = np.arange(len(columns)) + (position - 1) * width
        _violins(ax, values, centres, width, COLORS[name])
        ax.scatter(centres, values.mean(axis=0), s=14, color="white", edgecolor="black", linewidth=0.8, zorder=3)
        ax.plot([], [], color=COLORS[name], linewidth=6, label=name)
    ax.scatter([], [], s=14, color="white", edgecolor="black", linewidth=0.8, label="mean")
    ax.set_xticks(np.arange(len(columns)), [names[i] for i in columns], fontstyle="italic")
    ax.set(ylabel=ylabel, title=title, xlim=(-0.6, len(columns) - 0.4))
    ax.legend(
        frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1.0, columnspacing=1.2
    )
    if title:
        ax.set_title(title, pad=26)
    despine(ax)
    return ax


def _pick(genes, names: list[str], n_top: int, populations) -> list[int]:
    if genes is None:
        mean = {key: np.asarray(populations[key].mean(axis=0)).ravel() for key in ("control", "observed")}
        return np.argsort(-np.abs(mean["observed"] - mean["control"]), kind="stable")[:n_top].tolist()
    missing = [str(gene) for gene in genes if str(gene) not in names]
    if missing:
        close = {gene: difflib.get_close_matches(gene, names, n=3) for gene in missing[:10]}
        raise ValueError(f"{len(missing)} genes are not among gene_names; closest names: {close}.")
    return [names.index(str(gene)) for gene in genes]


def _dense_columns(x, columns: list[int]) -> np.ndarray:
    picked = x[:, columns]
    return np.asarray(picked.toarray() if sp.issparse(picked) else picked, dtype=float)


def _violins(ax: Axes, values: np.ndarray, centres: np.ndarray, width: float, color: str) -> None:
    # a density needs spread: genes that are the same in all cells keep their mean marker only
    spread = np.ptp(values, axis=0) > 1e-8 if values.shape[0] > 1 else np.zeros(values.shape[1], dtype=bool)
    if not spread.any():
        return
    parts = ax.violinplot(values[:, spread], centres[spread], widths=0.95 * width, showextrema=False)
    for body in parts["bodies"]:
        body.set(facecolor=color, edgecolor=color, alpha=0.8, linewidth=0.5)
