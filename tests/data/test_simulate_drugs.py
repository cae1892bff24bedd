"""The simulated drug screen: its truth is what its cells say, and its drugs are what their features say."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_causal.data import simulate_drugs

SMALL = {"n_nodes": 6, "n_drugs": 5, "n_new_drugs": 2, "dosages": (0.5, 2.0), "new_dosages": (1.0,), "n_cells": 400}


@pytest.fixture(
    scope="module", params=[("shift", "linear"), ("hard", "linear"), ("shift", "tanh"), ("hard", "tanh")], ids="-".join
)
def simulation(request):
    intervention, mechanism = request.param
    return simulate_drugs(**SMALL, n_control=4_000, intervention=intervention, mechanism=mechanism, seed=3)


def test_controls_are_standardised(simulation):
    controls = simulation.adata.X[(simulation.adata.obs["perturbation"] == "control").to_numpy()]
    np.testing.assert_allclose(controls.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(controls.std(0), 1, atol=0.1)


def test_cells_have_the_moments_of_their_condition(simulation):
    obs = simulation.adata.obs
    for k, row in simulation.conditions[simulation.conditions["part"] == "train"].iterrows():
        mine = (obs["perturbation"] == row["perturbation"]) & (obs["dosage"] == row["dosage"])
        cells = simulation.adata.X[mine.to_numpy()]
        assert len(cells) == SMALL["n_cells"]
        error = cells.std(0) / np.sqrt(len(cells))
        assert (np.abs(cells.mean(0) - simulation.means.iloc[k]) < 5 * error + 0.02).all()
        fresh = simulation.draw(k, 3_000, seed=1)
        np.testing.assert_allclose(np.cov(fresh, rowvar=False), simulation.covariances[k], atol=0.3)


def test_only_targets_have_a_size_and_dosages_change_it(simulation):
    sizes, conditions = simulation.sizes.to_numpy(), simulation.conditions
    assert (sizes[~simulation.targets.to_numpy()] == 0).all()
    low = np.abs(sizes[(conditions["part"] == "train") & (conditions["dosage"] == 0.5)]).sum(1)
    high = np.abs(sizes[(conditions["part"] == "train") & (conditions["dosage"] == 2.0)]).sum(1)
    assert (high > low).all()


def test_new_drugs_have_features_and_no_cells(simulation):
    new = simulation.conditions.loc[simulation.conditions["part"] == "new drug", "perturbation"].unique()
    assert len(new) == 2
    assert set(new) <= set(simulation.adata.uns["features"].index)
    assert not simulation.adata.obs["perturbation"].isin(new).any()


def test_a_shift_spreads_along_the_edges():
    simulation = simulate_drugs(**SMALL, n_control=10, seed=1)
    nodes = simulation.adata.var_names
    weight = np.zeros((6, 6))
    weight[nodes.get_indexer(simulation.grn["source"]), nodes.get_indexer(simulation.grn["target"])] = simulation.grn[
        "weight"
    ]
    total = np.linalg.inv(np.eye(6) - weight)
    np.testing.assert_allclose(simulation.means, simulation.sizes.to_numpy() @ total, atol=1e-10)


def test_every_node_is_a_target_if_there_are_enough_classes():
    assert simulate_drugs(n_nodes=8, n_drugs=60, n_cells=1, n_control=5, seed=0).targets.any().all()


def test_seeds_and_choices():
    one, again, other = (simulate_drugs(**SMALL, n_control=5, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.adata.X, again.adata.X)
    assert not np.array_equal(one.adata.X, other.adata.X)
    with pytest.raises(ValueError, match="'soft'"):
        simulate_drugs(intervention="soft")
