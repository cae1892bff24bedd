"""Foreign models in a few lines, importable, so that other processes can have them too."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from scvi_causal import metrics


class MeanShift:
    """A foreign model in a few lines: control cells, moved by the mean effect of all training perturbations."""

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def fit(self, adata):
        x = metrics.log1p_normalize(adata.X, adata.obs["library"])
        is_control = (adata.obs["perturbation"] == "control").to_numpy()
        self.shift = metrics.mean_profile(x[~is_control]) - metrics.mean_profile(x[is_control])

    def predict(self, adata, targets):
        x = metrics.log1p_normalize(adata.X, adata.obs["library"]).toarray() + self.factor * self.shift
        obs = pd.DataFrame({"perturbation": np.repeat(list(targets), len(x))})
        obs.index = obs.index.astype(str)
        return ad.AnnData(np.tile(x, (len(targets), 1)).astype(np.float32), obs=obs, var=adata.var[[]])
