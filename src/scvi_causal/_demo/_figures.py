"""The three pictures of a run, as PNG files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_causal import metrics, pl

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.figure import Figure

    from ._holdout import Task
    from ._models import Run

GROUP_KEY = "scvi_causal_group"


def draw_effects(path: Path, x, task: Task, runs: list[Run], gene_names, n_de: int) -> str:
    """Observed against predicted effects for the given models side by side; returns the caption."""
    figure = _figure(5.0 * len(runs), 5.0)
    axes = np.atleast_1d(figure.subplots(1, len(runs)))
    observed = metrics.mean_profile(x[task.observed]) - metrics.mean_profile(x[task.reference])
    source = metrics.mean_profile(x[task.source])
    predicted = [metrics.mean_profile(run.predicted) - source for run in runs]
    both = np.concatenate([observed, *predicted])
    margin = 0.08 * np.ptp(both)
    # the same limits, so that the panels can be compared by eye
    limits = (min(both.min(), 0.0) - margin, max(both.max(), 0.0) + margin)
    for ax, run, effect in zip(axes, runs, predicted, strict=True):
        pl.effects(observed, effect, gene_names, title=run.name, n_de=n_de, limits=limits, ax=ax)
    figure.suptitle(task.title)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return (
        f"Effect on every gene of {task.title}: observed (held-out cells against control cells no model saw) and predicted. "
        f"Blue: the {n_de} genes that change most."
    )


def draw_genes(path: Path, x, task: Task, run: Run, gene_names, ylabel: str) -> str:
    """Violins of the genes that change most; returns the caption."""
    figure = _figure(9.2, 3.8)
    populations = (x[task.reference], x[task.observed], run.predicted)
    pl.genes(*populations, gene_names, ylabel=ylabel, title=f"{task.title}: {run.name}", ax=figure.subplots())
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return (
        f"The genes that change most in {task.title}: control cells, observed cells (never trained on) and cells predicted "
        f"by {run.name}."
    )


def draw_latent(
    path: Path, adata: AnnData, use_rep: str, name: str, columns: list[str], control: str, seed: int
) -> str:
    """UMAP of the latents; returns the caption."""
    figure = _figure(5.2 * len(columns), 3.8)
    axes = list(np.atleast_1d(figure.subplots(1, len(columns))))
    pl.latent(adata, use_rep, columns, control_category=control, seed=seed, axes=axes)
    axes[0].set_title("what was held out")
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return f"UMAP of the latent space of {name} (adata.obsm['{use_rep}']), all cells."


def _figure(width: float, height: float) -> Figure:
    """Return a figure of its own, outside pyplot: no window, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
