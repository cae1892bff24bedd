"""Calibration: what the model draws has the means of the training cells, and test cells have no say in it."""

from __future__ import annotations

import numpy as np
import pytest
import scvi

import scvi_causal
from scvi_causal.data import simulate_screen
from scvi_causal.model.sccvae import _model


@pytest.fixture(scope="module")
def screen():
    # few counts per cell: the log of the mean and the mean of the logs are far apart
    adata = simulate_screen(
        n_genes=30, n_perturbations=5, n_cells_per_perturbation=200, n_control=400, library_size=1_500, seed=1
    ).adata
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 4 == 0, "test", "train")
    return adata


def train(adata, **options):
    scvi_causal.SCCVAE.setup_anndata(adata, size_factor_key="library", grn_key=None)
    scvi.settings.seed = 0
    model = scvi_causal.SCCVAE(adata, n_latent=4, n_hidden=16, graph="none", **options)
    model.train(max_epochs=15, split_key="split", enable_progress_bar=False)
    return model


def misfit(model) -> float:
    """Error of the mean log1p expression of drawn training populations, relative to that of no change."""
    adata = model.adata
    train_cells = (adata.obs["split"] == "train").to_numpy()
    library = adata.obs["library"].to_numpy()[:, None]
    observed = np.log1p(adata.X.toarray() / library * 1e4)
    labels = adata.obs["perturbation"].astype(str).to_numpy()
    control = observed[train_cells & (labels == "control")].mean(0)
    tokens = model.seen_tokens_.tolist()
    rows = np.flatnonzero(train_cells & (labels == "control"))
    drawn = model.predict_counterfactual(tokens, indices=rows, output="log1p", sample=True, seed=1)
    error = change = 0.0
    for token in tokens:
        truth = observed[train_cells & (labels == token)].mean(0)
        predicted = drawn.X[(drawn.obs["perturbation"] == token).to_numpy()].mean(0)
        error += ((predicted - truth) ** 2).sum()
        change += ((control - truth) ** 2).sum()
    return error / change


def test_drawn_means_come_closer_to_the_training_cells(screen, monkeypatch):
    # shrunken responses are not meant to hit the noise of the training cells
    calibrated = misfit(train(screen.copy(), shrink_responses=False))
    monkeypatch.setattr(_model, "calibrate_responses", lambda *args: None)
    uncalibrated = misfit(train(screen.copy(), shrink_responses=False))
    assert calibrated < 0.05
    assert calibrated < 0.5 * uncalibrated


def test_test_cells_have_no_say(screen):
    scrambled = screen.copy()
    test_cells = np.flatnonzero(scrambled.obs["split"] == "test")
    order = np.arange(screen.n_obs)
    order[test_cells] = test_cells[::-1]
    scrambled.X = scrambled.X[order]
    one, other = train(screen.copy()), train(scrambled)
    for name, value in one.module.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), other.module.state_dict()[name].numpy(), err_msg=name)
