"""UMAP of a representation of cells, through scanpy."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import numpy as np

from ._style import COLORS, despine, palette

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes


def latent(
    adata: AnnData,
    use_rep: str = "X_sccvae",
    color: str | Sequence[str] = "perturbation",
    *,
    basis: str | None = None,
    control_category: str | None = "control",
    max_cells: int = 5000,
    n_neighbors: int = 15,
    seed: int = 0,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """UMAP of ``adata.obsm[use_rep]``, one panel per column of ``color``.

    ``adata`` is left as it is: neighbours and UMAP are computed on a slim copy.

    Parameters
    ----------
    adata
        With the representation in ``obsm`` and the colours in ``obs``.
    use_rep
        Key in ``obsm``, such as the output of ``model.get_latent_representation()``.
    color
        One or several columns of ``obs``.
    basis
        An embedding that is in ``obsm`` already (``"X_umap"``): drawn as it is, nothing is computed.
    control_category
        The value of a colour column that is drawn in grey, so that perturbations stand out.
    max_cells
        Cells drawn at most, chosen at random: neighbours and UMAP take the longest of all steps on large data.
    n_neighbors
        Of the neighbour graph.
    seed
        Of the choice of cells, neighbours and UMAP.
    axes
        One per panel; ``None`` makes a figure of its own.

    Returns
    -------
    The axes, one per column of ``color``.

    Raises
    ------
    ValueError
        If a key is missing, or there are fewer axes than colours.

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> from scvi_causal import pl
    >>> adata = anndata.AnnData(
    ...     obs=pd.DataFrame({"perturbation": ["control", "A"] * 10}, index=[f"cell{i}" for i in range(20)])
    ... )
    >>> adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(20, 2))
    >>> len(pl.latent(adata, basis="X_umap"))
    1
    """
    import scanpy as sc

    colors = [color] if isinstance(color, str) else list(color)
    for place, keys, known in (("obs", colors, adata.obs.columns), ("obsm", [basis or use_rep], adata.obsm.keys())):
        missing = [key for key in keys if key not in known]
        if missing:
            close = {key: difflib.get_close_matches(key, map(str, known), n=3) for key in missing}
            raise ValueError(f"Not in adata.{place}: {missing}; closest: {close}. It has {sorted(map(str, known))}.")
    if axes is None:
        import matplotlib.pyplot as plt

        size = (4.6 * len(colors), 3.6)
        axes = list(np.ravel(plt.subplots(1, len(colors), figsize=size, layout="constrained")[1]))
    if len(axes) < len(colors):
        raise ValueError(f"{len(colors)} colours need as many axes, got {len(axes)}.")

    slim = _slim_copy(adata, basis or use_rep, colors, max_cells, seed)
    if basis is None:
        sc.pp.neighbors(slim, n_neighbors=min(n_neighbors, slim.n_obs - 1), use_rep="X_rep", random_state=seed)
        sc.tl.umap(slim, random_state=seed)
    else:
        slim.obsm["X_umap"] = slim.obsm["X_rep"]
    for ax, column in zip(axes, colors, strict=False):
        _draw(slim, column, ax, control_category)
    return list(axes[: len(colors)])


def _slim_copy(adata: AnnData, key: str, colors: list[str], max_cells: int, seed: int) -> AnnData:
    from anndata import AnnData

    rng = np.random.default_rng(seed)
    # shuffled, so that no population is drawn on top of another because it comes last in the file
    cells = rng.permutation(adata.n_obs)[:max_cells]
    slim = AnnData(obs=adata.obs[colors].iloc[cells].copy())
    slim.obsm["X_rep"] = np.asarray(adata.obsm[key], dtype=np.float32)[cells]
    return slim


def _draw(slim: AnnData, column: str, ax: Axes, control_category: str | None) -> None:
    import pandas as pd
    import scanpy as sc

    values = slim.obs[column]
    options = {"cmap": "viridis"}
    if not pd.api.types.is_numeric_dtype(values):
        slim.obs[column] = values = values.astype(str).astype("category")
        others = [category for category in values.cat.categories if category != control_category]
        colors = dict(zip(others, palette(len(others)), strict=True)) | {control_category: COLORS["control"]}
        options = {"palette": [colors[category] for category in values.cat.categories]}
    size = float(np.clip(60_000 / slim.n_obs, 4, 60))
    sc.pl.umap(slim, color=column, ax=ax, show=False, frameon=True, size=size, alpha=0.8, **options)
    ax.set(xlabel="UMAP 1", ylabel="UMAP 2")
    despine(ax)
