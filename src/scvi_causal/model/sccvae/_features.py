"""Features of tokens: registered ones, or the published default from the expression of the controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData
from scipy.sparse import vstack

from scvi_causal.model.base._group_moments import iterate_expression

if TYPE_CHECKING:
    from scvi.data import AnnDataManager


def expression_features(
    manager: AnnDataManager, controls: np.ndarray, n_components: int, log_normalize: bool
) -> np.ndarray:
    """Principal component scores of genes over control cells (the published embedding of a perturbation).

    Genes are the samples and control cells their coordinates; every cell is centred over the genes. Each component is given
    the sign that makes its largest score positive.

    Parameters
    ----------
    manager
        Manager of the training data.
    controls
        Rows of the training controls.
    n_components
        Number of components asked for; columns beyond what the data allow are zero.
    log_normalize
        Whether the data are counts.

    Returns
    -------
    (n_genes, n_components) float32, row g for gene g.
    """
    import scanpy as sc

    scale = "log1p" if log_normalize else "continuous"
    genes = AnnData(vstack([x for _, x in iterate_expression(manager, controls, scale)]).T.tocsr())
    usable = min(n_components, min(genes.shape) - 1)
    scores = np.zeros((genes.n_obs, n_components), dtype=np.float32)
    if usable < 1:
        return scores
    found = sc.pp.pca(genes.X, n_comps=usable, svd_solver="arpack", random_state=0, return_info=False)
    largest = np.take_along_axis(found, np.abs(found).argmax(0)[None], 0)
    scores[:, :usable] = found * np.where(largest < 0, -1.0, 1.0)
    return scores
