"""UMAP of real and predicted cells together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ._style import COLORS, axes_or_new, despine

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def populations(
    control,
    observed,
    counterfactual,
    *,
    n_pcs: int = 30,
    n_neighbors: int = 15,
    max_cells: int = 1000,
    seed: int = 0,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """UMAP of control, observed and counterfactual cells of one perturbation, embedded together.

    A good prediction lies *among* the observed cells and fills the same area. Beside them, its mean is wrong; in a corner
    of them, its cells are too much alike. Both can be seen because the PCA is fitted on all three populations. UMAP does
    not keep distances: judge by neighbours here, by :data:`~scvi_causal.metrics.METRICS` in numbers.

    Parameters
    ----------
    control, observed, counterfactual
        (cells, genes) populations on the same scale (log1p), dense or sparse; the counterfactual as draws of cells
        (``sample=True``): expected expression has no noise and never mixes with real cells.
    n_pcs
        Principal components of the cells, genes centred and not scaled.
    n_neighbors
        Of the neighbour graph.
    max_cells
        Cells of each population at most, chosen at random, so that no population is larger than the others by much.
    seed
        Of the choice of cells, PCA, neighbours and UMAP.
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
        If the numbers of genes differ, or there are fewer than 5 cells in all.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal import pl
    >>> control, observed, predicted = np.random.default_rng(0).normal(size=(3, 40, 10))
    >>> ax = pl.populations(control, observed + 2, predicted + 2)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['control', 'observed', 'counterfactual']
    """
    given = {"control": control, "observed": observed, "counterfactual": counterfactual}
    n_genes = {name: x.shape[1] for name, x in given.items()}
    if len(set(n_genes.values())) > 1:
        raise ValueError(f"The populations have different numbers of genes: {n_genes}.")
    rng = np.random.default_rng(seed)
    parts = [x[np.sort(rng.permutation(x.shape[0])[:max_cells])] for x in given.values()]
    labels = np.repeat(list(given), [x.shape[0] for x in parts])
    if labels.size < 5:
        raise ValueError(f"A neighbour graph needs at least 5 cells, got {labels.size}.")
    points = _embed(parts, n_pcs, n_neighbors, seed)

    ax = axes_or_new(ax, (4.8, 4.4))
    order = rng.permutation(labels.size)  # no population is drawn on top because it comes last
    size = float(np.clip(12_000 / labels.size, 4, 40))
    colors = np.array([COLORS[label] for label in labels])
    ax.scatter(*points[order].T, s=size, c=colors[order], alpha=0.75, linewidth=0, rasterized=True)
    for name in given:
        ax.scatter([], [], s=40, color=COLORS[name], label=name)
    ax.legend(
        frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), handletextpad=0.1, columnspacing=1.0
    )
    ax.set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    if title:
        ax.set_title(title, pad=26)
    despine(ax)
    return ax


def _embed(parts: list, n_pcs: int, n_neighbors: int, seed: int) -> np.ndarray:
    """(cells, 2) UMAP of all populations."""
    import scanpy as sc
    from anndata import AnnData

    x = sp.vstack(parts, format="csr") if any(sp.issparse(p) for p in parts) else np.vstack(parts)
    cells = AnnData(x.astype(np.float32))
    n_pcs = min(n_pcs, min(cells.shape) - 1)
    if n_pcs >= 1:
        sc.pp.pca(cells, n_comps=n_pcs, random_state=seed)
    else:
        cells.obsm["X_pca"] = np.asarray(cells.X.todense() if sp.issparse(cells.X) else cells.X)
    sc.pp.neighbors(cells, n_neighbors=min(n_neighbors, cells.n_obs - 1), use_rep="X_pca", random_state=seed)
    sc.tl.umap(cells, random_state=seed)
    return np.asarray(cells.obsm["X_umap"])
