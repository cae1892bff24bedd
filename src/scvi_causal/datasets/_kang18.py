"""The embedded example. Where it comes from and how the file was made is told in ``files/README.md``."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import anndata
import numpy as np
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from anndata import AnnData

_MIN_PER_STRATUM = 10


def kang18(n_cells: int | None = None, *, seed: int = 0) -> AnnData:
    """Immune cells with and without interferon beta: 14,039 cells, 1,000 genes, 8 cell types, one perturbation.

    Raw counts of a panel of highly variable genes [1]_, GEO GSE96583. Every cell type occurs in both conditions, so that
    each can be held out in turn: its stimulated cells are predicted from its control cells and the other cell types.

    Parameters
    ----------
    n_cells
        Number of cells of a random subset; all of them by default. Cell types and conditions keep their shares, but no
        stratum falls below 10 cells.
    seed
        Seed of the subset.

    Returns
    -------
    AnnData with ``X`` (CSR, float32 counts) and ``obs``: ``perturbation`` (``"control"``, ``"IFNB"``), ``cell_type``,
    ``library_size_full`` (counts over the whole transcriptome; the size factor, since the panel is a selection).

    Raises
    ------
    ValueError
        If ``n_cells`` exceeds the number of cells or leaves less than 10 per cell type and condition.

    References
    ----------
    .. [1] Kang et al., Multiplexed droplet single-cell RNA-sequencing using natural genetic variation, Nature
       Biotechnology 36, 89-94 (2018).

    Examples
    --------
    >>> import scvi_causal
    >>> adata = scvi_causal.datasets.kang18(n_cells=500)
    >>> adata.shape, sorted(adata.obs["perturbation"].unique())
    ((500, 1000), ['IFNB', 'control'])
    """
    with as_file(files(__package__) / "files" / "kang18_pbmc_ifnb.h5ad") as path:
        adata = anndata.read_h5ad(path)
    packed = adata.X
    parts = (packed.data.astype(np.float32), packed.indices.astype(np.int32), packed.indptr.astype(np.int32))
    adata.X = csr_matrix(parts, shape=packed.shape)
    adata.obs["library_size_full"] = adata.obs["library_size_full"].astype(float)
    if n_cells is None:
        return adata
    return adata[_stratified_subset(adata, n_cells, np.random.default_rng(seed))].copy()


def _stratified_subset(adata: AnnData, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Sorted positions of ``n_cells`` cells, the strata in their shares."""
    strata = adata.obs.groupby(["cell_type", "perturbation"], observed=True).ngroup().to_numpy()
    sizes = np.bincount(strata)
    if not _MIN_PER_STRATUM * len(sizes) <= n_cells <= adata.n_obs:
        raise ValueError(
            f"n_cells={n_cells} must lie between {_MIN_PER_STRATUM * len(sizes)} ({_MIN_PER_STRATUM} for each cell type and "
            f"condition) and {adata.n_obs}."
        )
    wanted = np.maximum(_MIN_PER_STRATUM, np.floor(sizes * n_cells / adata.n_obs)).astype(int)
    while wanted.sum() != n_cells:  # rounding and minimums are settled in the largest strata
        wanted[np.argmax(wanted if wanted.sum() > n_cells else sizes - wanted)] += np.sign(n_cells - wanted.sum())
    chosen = [rng.choice(np.flatnonzero(strata == code), n, replace=False) for code, n in enumerate(wanted)]
    return np.sort(np.concatenate(chosen))
