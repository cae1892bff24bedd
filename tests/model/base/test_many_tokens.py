"""Screens of high multiplicity: nearly every cell has a combination of its own, and no cell a single token."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scvi
from scipy.sparse import csr_matrix

import scvi_causal
from scvi_causal import CRADLEVAE, SAMSVAE, SCCVAE
from scvi_causal.metrics import log1p_normalize

TOKENS = np.array([f"T{i}" for i in range(10)])
N_GENES, N_CONTROLS = 30, 60
MODELS = {
    scvi_causal.model.Additive: ({}, {}),
    SCCVAE: ({"n_latent": 8, "n_hidden": 16}, {"max_epochs": 20}),
    SAMSVAE: ({"n_latent": 16, "n_hidden": 16}, {"max_epochs": 40}),
    CRADLEVAE: ({"n_latent": 16, "n_hidden": 16}, {"max_epochs": 40}),
}


@pytest.fixture(scope="module")
def world() -> tuple[ad.AnnData, np.ndarray]:
    """Cells with two to five tokens each, and what each token does to log shares."""
    rng = np.random.default_rng(0)
    effect = rng.normal(0.0, 0.5, (10, N_GENES)) * (rng.random((10, N_GENES)) < 0.4)
    carried = np.zeros((500 + N_CONTROLS, 10), dtype=bool)
    for row in carried[N_CONTROLS:]:
        row[rng.choice(10, rng.integers(2, 6), replace=False)] = True
    share = np.exp(rng.normal(0.0, 0.7, N_GENES) + carried @ effect)
    counts = rng.poisson(600 * share / share.sum(1, keepdims=True))
    obs = pd.DataFrame({"perturbation": ["+".join(TOKENS[row]) or "control" for row in carried]})
    obs["quality"] = np.where(rng.random(len(obs)) < 0.2, "fail", "pass")
    adata = ad.AnnData(csr_matrix(counts.astype(np.float32)), obs.set_index(obs.index.astype(str)))
    assert adata.obs["perturbation"].value_counts().iloc[1:].median() == 1
    return adata, effect


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_what_a_token_does_is_found_without_a_cell_that_has_it_alone(cls, world):
    adata, effect = world[0].copy(), world[1]
    options, train = MODELS[cls]
    cls.setup_anndata(adata)
    scvi.settings.seed = 0
    model = cls(adata, **options)
    model.train(accelerator="cpu", enable_progress_bar=False, **train)
    controls = np.arange(N_CONTROLS)
    found = model.predict_counterfactual(list(TOKENS), indices=controls, output="log1p")
    before = np.asarray(log1p_normalize(adata.X[controls]).mean(0)).ravel()
    mean = [np.asarray(found.X[(found.obs["perturbation"] == token).to_numpy()].mean(0)).ravel() for token in TOKENS]
    predicted = np.array(mean) - before
    expected = effect - effect.mean(1, keepdims=True)
    assert np.isfinite(predicted).all()
    assert np.corrcoef(predicted.ravel(), expected.ravel())[0, 1] > 0.8
