"""Effects, embeddings and graphs: the same shape from every model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


def test_effects_have_the_columns_of_scvi_tools(model, screen):
    effects = model.get_perturbation_effects(["G1", "G2+G1"], n_samples=4, n_cells=20)
    assert len(effects) == 2 * screen.n_vars
    assert effects["perturbation"].unique().tolist() == ["G1", "G1+G2"]
    assert effects["gene"].tolist() == screen.var_names.tolist() * 2
    for column in (
        "proba_de",
        "bayes_factor",
        "scale1",
        "scale2",
        "lfc_mean",
        "lfc_median",
        "lfc_std",
        "lfc_min",
        "lfc_max",
    ):
        assert np.isfinite(effects[column].to_numpy(dtype=float)).all()
    assert effects["is_de_fdr_0.05"].dtype == bool
    assert (effects["lfc_q05"] <= effects["lfc_q95"]).all()


def test_effects_default_to_all_training_conditions(model):
    effects = model.get_perturbation_effects(n_samples=2, n_cells=10)
    assert set(effects["perturbation"]) == set(model.seen_conditions_) - {"control"}


def test_control_has_no_effect(model):
    effects = model.get_perturbation_effects(["control"], n_samples=3, n_cells=10)
    np.testing.assert_allclose(effects["lfc_mean"], 0, atol=1e-6)


def test_effects_are_seeded(model):
    kwargs = {"perturbations": ["G1"], "n_samples": 3, "n_cells": 10}
    one, again, other = (model.get_perturbation_effects(seed=s, **kwargs) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(one, again)
    assert not one["scale1"].equals(other["scale1"])


def test_effects_refuse_what_cannot_be_predicted(model):
    with pytest.raises(ValueError, match="nothing"):
        model.get_perturbation_effects(["nothing"])


def test_embedding_has_one_observation_per_perturbation(model):
    embedding = model.get_perturbation_embedding()
    assert embedding.obs_names.tolist() == model.seen_conditions_.tolist()
    assert embedding.obs["perturbation"].tolist() == model.seen_conditions_.tolist()
    assert np.isfinite(embedding.X).all()
    some = model.get_perturbation_embedding(["G2+G1", "G1+G2", "drug x"])
    assert some.obs_names.tolist() == ["G1+G2", "drug x"]
    # a product of matrices rounds differently with the number of rows
    np.testing.assert_allclose(some.X, embedding[some.obs_names.tolist()].X, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="nothing"):
        model.get_perturbation_embedding(["nothing"])


def test_grn_is_an_edge_list_or_a_reason(model, screen):
    try:
        grn = model.get_grn()
    except NotImplementedError as reason:
        assert type(model).__name__ in str(reason)  # noqa: PT017
        assert "uns['grn']" in str(reason)  # noqa: PT017
    else:
        assert list(grn.columns[:3]) == ["source", "target", "weight"]


def test_latent_is_a_matrix_or_a_reason(model, screen):
    try:
        latent = model.get_latent_representation()
    except NotImplementedError as reason:
        assert "latent" in str(reason)  # noqa: PT017
    else:
        assert latent.shape[0] == screen.n_obs
        assert np.isfinite(latent).all()
