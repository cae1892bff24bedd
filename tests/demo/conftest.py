"""A stand-in for a model: the public API in a few lines, so that the demo is tested apart from any training."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, issparse

from scvi_causal import metrics


class MeanShift:
    """Predicts a control cell plus the mean shift of all training perturbations; keeps a record of what it was shown."""

    refuses: tuple[str, ...] = ()
    shift = 1.0

    def __init__(self, adata):
        self.adata = adata

    @classmethod
    def setup_anndata(cls, adata, **setup):
        cls.setup, cls.layer = setup, setup["layer"]

    def train(self, split_key, max_epochs=None):
        self.train_split, self.max_epochs = split_key, max_epochs
        x, labels = self._x(), self.adata.obs["perturbation"].to_numpy().astype(str)
        train = (self.adata.obs[split_key] == "train").to_numpy()
        mean = {kind: metrics.mean_profile(x[train & mask]) for kind, mask in self._masks(labels).items()}
        self.effect = self.shift * (mean["perturbed"] - mean["control"])

    def _x(self):
        return metrics.log1p_normalize(self.adata.X)

    @staticmethod
    def _masks(labels):
        return {"control": labels == "control", "perturbed": labels != "control"}

    def can_predict(self, perturbations):
        predictable = [name not in self.refuses for name in perturbations]
        return pd.DataFrame({"predictable": predictable, "reason": "never heard of it"}, index=perturbations)

    def predict_counterfactual(
        self, perturbation=None, indices=None, output=None, sample=None, key_added=None, seed=None
    ):
        self.asked = {"output": output, "sample": sample, "seed": seed}
        cells = np.arange(self.adata.n_obs) if indices is None else indices
        x = np.asarray(self._x()[cells].todense()) + self.effect.astype(np.float32)
        if key_added is None:
            return ad.AnnData(x)
        self.adata.layers[key_added] = x
        return None

    def get_latent_representation(self):
        return np.asarray(self.adata.X[:, :5].toarray() if issparse(self.adata.X) else self.adata.X[:, :5])


@pytest.fixture
def models(monkeypatch):
    """Stand-ins under the names that the demo looks up; returns them by name."""
    import scvi_causal

    names = ["SCCVAE", "ControlMean", "PerturbedMean", "Additive", "LinearEffect", "NearestPerturbation"]
    made = {name: type(name, (MeanShift,), {}) for name in names}
    made["ControlMean"].shift = 0.0
    for name, model in made.items():
        monkeypatch.setitem(vars(scvi_causal), name, model)
    return made


@pytest.fixture
def screen():
    """Counts of 25 genes in 4 conditions x 2 lines; every perturbation moves the first five genes, strongly."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.repeat(["control", "A", "B", "C"], [60, 30, 30, 30]), 2)
    line = np.repeat(["K562", "RPE1"], 150)
    rate = np.tile(rng.gamma(3.0, 6.0, 25), (300, 1))
    rate[np.ix_(labels != "control", range(5))] *= 5
    obs = pd.DataFrame({"perturbation": labels, "line": line}, index=[f"cell{i}" for i in range(300)])
    adata = ad.AnnData(rng.poisson(rate).astype(np.float32), obs=obs)
    adata.var_names = [f"gene{i}" for i in range(25)]
    adata.X = csr_matrix(adata.X)
    return adata
