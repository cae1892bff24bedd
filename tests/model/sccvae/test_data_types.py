"""What SCCVAE makes of the values in the matrix."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import scvi_causal
from scvi_causal.data import simulate_screen


@pytest.fixture
def screen():
    return simulate_screen(n_genes=20, n_perturbations=4, n_cells_per_perturbation=15, n_control=40, seed=0).adata


@pytest.mark.parametrize(("value", "message"), [(-1.0, "1 values are negative"), (1.5, "1 are not whole")])
def test_a_few_wrong_counts_are_a_mistake(screen, value, message):
    screen.X.data[7] = value
    scvi_causal.SCCVAE.setup_anndata(screen)
    with pytest.raises(ValueError, match=f"look like counts.*{message}.*data_type='continuous'"):
        scvi_causal.SCCVAE(screen)
    assert scvi_causal.SCCVAE(screen, data_type="continuous").module.scale == "continuous"


def test_logged_data_are_continuous_with_a_warning(screen, caplog):
    screen.X = screen.X.log1p()
    scvi_causal.SCCVAE.setup_anndata(screen)
    with caplog.at_level(logging.WARNING, logger="scvi_causal"):
        model = scvi_causal.SCCVAE(screen)
    assert "are no counts" in caplog.text
    assert model.module.scale == "continuous"


def test_empty_cells_need_a_library(screen):
    screen.X = screen.X.multiply((np.arange(screen.n_obs) != 3)[:, None]).tocsr()
    scvi_causal.SCCVAE.setup_anndata(screen)
    with pytest.raises(ValueError, match="1 cells have no counts.*size_factor_key"):
        scvi_causal.SCCVAE(screen)
    scvi_causal.SCCVAE.setup_anndata(screen, size_factor_key="library")
    assert scvi_causal.SCCVAE(screen).module.scale == "counts"


def test_a_query_to_a_model_of_counts_holds_counts(screen):
    scvi_causal.SCCVAE.setup_anndata(screen)
    model = scvi_causal.SCCVAE(screen, n_latent=2, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False)
    query = screen[:10].copy()
    query.X = query.X * 1.5
    before = set(query.obs.columns) | set(query.uns) | set(query.obsm)
    with pytest.raises(ValueError, match="fractional"):
        model.predict_counterfactual(model.seen_tokens_[0], query)
    assert set(query.obs.columns) | set(query.uns) | set(query.obsm) == before


def test_strengths_modules_and_calibration_refuse_what_makes_no_sense(screen):
    scvi_causal.SCCVAE.setup_anndata(screen)
    model = scvi_causal.SCCVAE(screen, n_latent=2, n_hidden=8)
    model.train(max_epochs=1, enable_progress_bar=False)
    one, other = model.seen_tokens_[:2]
    for strengths in ([float("nan")], [0, "x"], []):
        with pytest.raises(ValueError, match="list of finite numbers"):
            model.simulate_penetrance(one, strengths)
    with pytest.raises(ValueError, match="n_modules is of method='hierarchical'"):
        model.get_modules(n_modules=2)
    rows = np.flatnonzero(screen.obs["perturbation"] == other)
    with pytest.raises(ValueError, match=f"labelled '{other}', not '{one}'"):
        model.calibrate_strength(one, indices=rows)
