"""An untrained model: robust effects are the group means, and so say nothing about the model (parity check 18)."""

from __future__ import annotations

import numpy as np
import pytest

import scvi_causal
from scvi_causal.metrics import r2_score_genes


def test_robust_scores_of_an_untrained_model_are_those_of_the_group_mean():
    adata = scvi_causal.data.simulate_screen(
        n_genes=40, n_perturbations=4, n_cells_per_perturbation=60, n_control=200, n_cell_types=2, seed=0
    ).adata
    adata.obs["split"] = np.where(np.random.default_rng(0).random(adata.n_obs) < 0.5, "train", "test")
    scvi_causal.VCI.setup_anndata(adata, categorical_covariate_keys=["cell_type"], size_factor_key="library")
    model = scvi_causal.VCI(adata, preset="paper")
    options = {"accelerator": "cpu", "enable_progress_bar": False, "plan_kwargs": {"lr": 0.0}}
    model.train(max_epochs=1, split_key="split", **options)
    ask = {"contrast": None, "predict_from": "cells", "perturbations": list(model.seen_tokens_), "n_samples": 2}
    table = model.get_marginal_effects(method=["mean", "robust", "group"], **ask)
    held_out = np.flatnonzero(adata.obs["split"] == "test")
    truth = model.get_marginal_effects(method="group", indices=held_out, **ask)
    keys = ["cell_type", "perturbation"]
    observed = {key: part["estimate"].to_numpy() for key, part in truth.groupby(keys, observed=True)}
    score = {
        name: np.mean(
            [r2_score_genes(observed[key], p["estimate"].to_numpy()) for key, p in part.groupby(keys, observed=True)]
        )
        for name, part in table.groupby("method")
    }
    assert score["group"] > 0.8
    assert score["mean"] < 0.5  # what the model says by itself
    assert score["robust"] == pytest.approx(score["group"], abs=2e-4)
    shift = table.loc[table["method"] == "robust", "balance_z"]
    assert shift.notna().all()
