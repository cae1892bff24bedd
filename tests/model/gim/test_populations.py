"""Statistics from one pass over the cells, nodes, and the read-out of all other genes, against direct computation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from scvi_causal import GIM
from scvi_causal.model.gim._nodes import NodeSpace, check_latent, fit_readout, gene_nodes, make_nodes
from scvi_causal.model.gim._populations import group_cells, node_moments, read_populations


@pytest.fixture
def counts() -> AnnData:
    """Two batches, two perturbations and a combination; the last gene is silent."""
    rng = np.random.default_rng(0)
    label = np.array(["control"] * 60 + ["A"] * 30 + ["B"] * 30 + ["A+B"] * 20, dtype=object)
    batch = np.where(rng.random(len(label)) < 0.5, "x", "y")
    rate = np.array([3.0, 2.0, 5.0, 4.0, 1.0, 0.0]) * (1 + 0.5 * (batch == "y")[:, None])
    rate = rate * np.exp(0.8 * np.outer(np.char.find(label.astype(str), "A") >= 0, [1, -1, 0, 0.5, 0, 0]))
    x = rng.poisson(rate).astype(np.float32)
    x[x.sum(1) == 0, 0] = 1
    obs = pd.DataFrame({"perturbation": label, "batch": batch}, index=[f"c{i}" for i in range(len(label))])
    return AnnData(csr_matrix(x), obs=obs, var=pd.DataFrame(index=["A", "g1", "g2", "g3", "g4", "silent"]))


@pytest.fixture
def manager(counts):
    GIM.setup_anndata(counts, batch_key="batch")
    return GIM(counts).adata_manager


def expression(adata) -> np.ndarray:
    x = adata.X.toarray().astype(float)
    return np.log1p(x / x.sum(1, keepdims=True) * 1e4)


def test_effects_are_taken_within_batches(counts, manager):
    rows = np.arange(counts.n_obs)
    found = read_populations(manager, rows, counts.n_vars, "log1p")
    x, label, batch = expression(counts), counts.obs["perturbation"].to_numpy(), counts.obs["batch"].to_numpy()
    names = [["A", "B"][i] for i in found.grouping.conditions.indices[:2]]
    assert names == ["A", "B"]
    for k, name in enumerate([*names, "A+B"]):
        strata = [((label == name) & (batch == b), (label == "control") & (batch == b)) for b in ("x", "y")]
        weight = [1 / (1 / mine.sum() + 1 / controls.sum() + 0.01) for mine, controls in strata]
        expected = np.average(
            [x[mine].mean(0) - x[controls].mean(0) for mine, controls in strata], axis=0, weights=weight
        )
        np.testing.assert_allclose(found.effect[k], expected, atol=1e-6)
        assert found.n[k] == (label == name).sum()
    within = [x[(label == "control") & (batch == b)] for b in ("x", "y")]
    pooled = sum(((c - c.mean(0)) ** 2).sum(0) for c in within) / (60 - 2)
    np.testing.assert_allclose(found.variance, pooled, atol=1e-6)
    controls = label == "control"
    expected = np.maximum((x[controls] > 0).mean(0), (x[~controls] > 0).mean(0))
    np.testing.assert_allclose(found.detection, expected)


@pytest.mark.parametrize("per_set", [False, True])
def test_moments_of_nodes(counts, manager, per_set):
    grouping = group_cells(manager, np.arange(counts.n_obs))
    space = NodeSpace(np.array(["A", "g2", "g3"]), np.array([0, 2, 3]), None, np.zeros((3, 6)))
    found = node_moments(manager, grouping, space, "log1p", per_set=per_set)
    x, label, batch = (
        expression(counts)[:, [0, 2, 3]],
        counts.obs["perturbation"].to_numpy(),
        counts.obs["batch"].to_numpy(),
    )
    centred, groups = x.copy(), pd.Series(label + batch)
    for group in groups.unique():
        centred[groups == group] -= x[groups == group].mean(0)
    control = label == "control"
    scale = np.sqrt((centred[control] ** 2).sum(0) / (60 - 2))
    np.testing.assert_allclose(found.scale, scale, atol=1e-6)
    data = found.statistics
    pooled = centred.T @ centred / (len(x) - groups.nunique()) / np.outer(scale, scale)
    np.testing.assert_allclose(data.covariance, pooled, atol=1e-6)
    np.testing.assert_allclose(data.control_mean, 0, atol=1e-8)
    strata = [((label == "A") & (batch == b), control & (batch == b)) for b in ("x", "y")]
    error = np.array([1 / mine.sum() + 1 / controls.sum() for mine, controls in strata])
    share = 1 / (error + 0.01) / (1 / (error + 0.01)).sum()
    expected = share @ [x[mine].mean(0) - x[controls].mean(0) for mine, controls in strata]
    np.testing.assert_allclose(data.mean[0], expected / scale, atol=1e-6)
    assert float(data.n[0]) == pytest.approx(1 / (share**2 @ error))
    # the controls of a batch are an estimate too, so that fewer cells than there are count
    assert (data.n.numpy() < [30, 30, 20]).all()
    assert (data.n > 0).all()
    if per_set:
        mine = label == "B"
        own = centred[mine].T @ centred[mine] / (mine.sum() - 2) / np.outer(scale, scale)
        np.testing.assert_allclose(data.set_covariance[1], own, atol=1e-6)
        assert data.set_covariance.shape == (4, 3, 3)


def test_without_batches_every_cell_counts(counts):
    GIM.setup_anndata(counts)
    grouping = group_cells(GIM(counts).adata_manager, np.arange(counts.n_obs))
    space = NodeSpace(np.array(["A", "g2"]), np.array([0, 2]), None, np.zeros((2, 6)))
    data = node_moments(GIM(counts).adata_manager, grouping, space, "log1p").statistics
    assert data.n.tolist() == [30, 30, 20]
    assert data.n_control == 60


def test_missing_populations_are_named(counts, manager):
    label = counts.obs["perturbation"].to_numpy()
    with pytest.raises(ValueError, match="perturbed"):
        read_populations(manager, np.flatnonzero(label == "control"), counts.n_vars, "log1p")
    with pytest.raises(ValueError, match="control"):
        read_populations(manager, np.flatnonzero(label != "control"), counts.n_vars, "log1p")


# ---------------------------------------------------------------------- nodes


def test_nodes_are_measured_targets_and_then_what_changes_most(counts, manager):
    found = read_populations(manager, np.arange(counts.n_obs), counts.n_vars, "log1p")
    genes = counts.var_names.to_numpy().astype(str)
    space = gene_nodes(found, genes, ["A", "B"], 2, "log1p")
    assert space.names.tolist() == ["A", "g1"]  # the target, and what it moves most
    np.testing.assert_array_equal(space.loadings.argmax(1), space.genes)
    everything = gene_nodes(found, genes, ["A"], 100, "log1p")
    assert everything.names.tolist() == ["A", "g1", "g2", "g3", "g4"]


def test_no_variable_gene_is_an_error(counts, manager):
    found = read_populations(manager, np.arange(counts.n_obs), counts.n_vars, "log1p")
    found.variance[:] = 0
    with pytest.raises(ValueError, match="vary among the training controls"):
        gene_nodes(found, counts.var_names.to_numpy(), [], 3, "log1p")


@pytest.mark.parametrize("latent", ["pca", "nmf"])
def test_components_are_linear_in_expression(counts, manager, latent):
    found = read_populations(manager, np.arange(counts.n_obs), counts.n_vars, "log1p")
    space = make_nodes(manager, found, latent, 3, counts.var_names.to_numpy(), [], "log1p")
    x = expression(counts)
    np.testing.assert_allclose(space.encode(csr_matrix(x)), x @ space.encoder)
    # what is made of components is found again by the encoder
    z = np.abs(np.random.default_rng(0).normal(size=(4, 3)))
    np.testing.assert_allclose(z @ space.loadings @ space.encoder, z, atol=1e-6)


def test_latent_has_to_be_there():
    check_latent("pca", [])
    check_latent("X_scVI", ["X_scVI"])
    with pytest.raises(ValueError, match="X_scVI"):
        check_latent("X_scvi", ["X_scVI"])


# ---------------------------------------------------------------------- read-out


def test_readout_keeps_nodes_and_finds_followers():
    rng = np.random.default_rng(1)
    effect = rng.normal(size=(30, 4))
    follow = rng.normal(size=(4, 3))
    genes = np.concatenate([effect * 2, effect @ follow + 0.01 * rng.normal(size=(30, 3))], axis=1)
    loadings = np.zeros((4, 7))
    loadings[np.arange(4), np.arange(4)] = 2.0  # genes are on another scale than standardised nodes
    found = fit_readout(effect, genes, np.full(30, 50.0), loadings, np.arange(4))
    np.testing.assert_array_equal(found[:, :4], loadings[:, :4])
    np.testing.assert_allclose(found[:, 4:], follow, atol=0.05)


def test_readout_of_noise_is_nothing_much():
    rng = np.random.default_rng(2)
    effect, noise = rng.normal(size=(25, 10)), rng.normal(size=(25, 40))
    loadings = np.zeros((10, 50))
    found = fit_readout(effect, np.concatenate([effect, noise], 1), np.full(25, 50.0), loadings, np.arange(10))
    assert np.abs(effect @ found[:, 10:]).std() < 0.3


def test_readout_of_a_single_condition_repeats_it():
    effect, genes = np.array([[1.0, -2.0]]), np.array([[1.0, -2.0, 3.0]])
    found = fit_readout(effect, genes, np.array([100.0]), np.eye(2, 3), np.arange(2))
    assert (effect @ found)[0, 2] == pytest.approx(3.0, rel=0.01)
