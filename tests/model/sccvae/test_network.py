"""The network as the model uses it, and the estimate of its weights."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from scvi_causal.model.sccvae import SCCVAEModule
from scvi_causal.model.sccvae._network import build_network, fit_network

GENES = np.array([f"g{i}" for i in range(8)])


def edges(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["source", "target", "weight"])


def named(network) -> set[tuple[str, str]]:
    return {(str(network.names[s]), str(network.names[t])) for s, t in network.edge_index.T}


def test_nodes_are_what_has_an_edge_or_is_perturbed():
    prior = edges(("g1", "g2", 4.0), ("drug", "g5", -8.0), ("g2", "g5", 2.0))
    network = build_network(prior, GENES, np.array(["drug", "g1", "g7", "other"]))
    assert set(network.names) == {"g1", "g2", "g5", "g7", "drug"}
    assert named(network) == {("g1", "g2"), ("drug", "g5"), ("g2", "g5")}
    assert network.n_removed == 0
    weight = dict(zip([tuple(network.names[e]) for e in network.edge_index.T], network.weight, strict=True))
    assert weight == {("g1", "g2"): 0.5, ("drug", "g5"): -1.0, ("g2", "g5"): 0.25}
    for gene, node in zip(GENES, network.node_of_gene, strict=True):
        assert node == -1 if gene not in network.names else network.names[node] == gene
    assert [network.names[n] if n >= 0 else None for n in network.node_of_token] == ["drug", "g1", "g7", None]


def test_tokens_that_will_be_asked_for_are_nodes():
    prior = edges(("g1", "g2", 4.0))
    network = build_network(prior, GENES, np.array(["g1"]), extra_tokens=("g7", "other"))
    assert set(network.names) == {"g1", "g2", "g7"}
    assert len(network.node_of_token) == 1  # only what has cells has parameters


def test_cycles_are_broken_where_they_are_lightest():
    prior = edges(("g0", "g1", 5.0), ("g1", "g0", -1.0), ("g3", "g3", 9.0), ("g1", "g2", 2.0))
    network = build_network(prior, GENES, np.array(["g0"]))
    assert named(network) == {("g0", "g1"), ("g1", "g2")}
    assert network.n_removed == 2


def test_a_network_without_edges():
    network = build_network(edges().astype({"weight": float}), GENES, np.array(["g3", "drug"]))
    assert network.edge_index.shape == (2, 0)
    assert network.names.tolist() == ["g3"]
    assert network.node_of_token.tolist() == [0, -1]


# ---------------------------------------------------------------------- estimating it


def make_module(network, log_normalize=True) -> SCCVAEModule:
    return SCCVAEModule(
        len(GENES),
        len(network.node_of_token),
        n_hidden=4,
        n_latent=2,
        gene_likelihood="nb" if log_normalize else "normal",
        log_normalize=log_normalize,
        edge_index=torch.from_numpy(network.edge_index),
        node_of_gene=network.node_of_gene,
        n_nodes=len(network.names),
        node_of_token=network.node_of_token,
    )


def true_folds(network, weight, shift) -> np.ndarray:
    """(tokens, genes) log fold changes by the inverse."""
    n = len(network.names)
    dense = np.zeros((n, n))
    dense[network.edge_index[0], network.edge_index[1]] = weight
    total = np.linalg.inv(np.eye(n) - dense)
    folds = np.zeros((len(shift), len(GENES)))
    measured = network.node_of_gene >= 0
    for token, node in enumerate(network.node_of_token):
        if node >= 0:
            folds[token, measured] = shift[token] * total[node, network.node_of_gene[measured]]
    return folds


@pytest.fixture
def world():
    """Responses without noise; every regulator is perturbed. Tokens: drug, g0, g1, g2, g6, stranger."""
    prior = edges(
        ("g0", "g1", 1.0),
        ("g1", "g2", 1.0),
        ("g0", "g3", 1.0),
        ("g2", "g4", -1.0),
        ("drug", "g5", 1.0),
        ("g2", "g5", 1.0),
    )
    tokens = np.array(["drug", "g0", "g1", "g2", "g6", "stranger"])
    network = build_network(prior, GENES, tokens)
    rng = np.random.default_rng(0)
    weight = network.weight * rng.uniform(0.4, 0.9, 6)
    shift = np.array([-1.4, -2.0, -1.8, -2.2, -1.6, 0.0])
    return network, weight, shift, true_folds(network, weight, shift)


def test_weights_and_shifts_are_recovered_without_noise(world):
    network, weight, shift, folds = world
    level = np.array([5.0, 30, 8, 50, 20, 12, 40, 3])
    response = np.log1p(level * np.exp(folds)) - np.log1p(level)
    module = make_module(network)
    explained = fit_network(module, response, np.full(response.shape, 1e-6), level, network.weight)
    np.testing.assert_allclose(explained, response, atol=0.03)
    # a token without a gene of its own says weight times shift only: what is carried on, not the two apart
    own = network.names[network.edge_index[0]] != "drug"
    np.testing.assert_allclose(module.sem.weight.detach().numpy()[own], weight[own], atol=0.05)
    np.testing.assert_allclose(module.target_shift.detach().numpy()[1:5], shift[1:5], atol=0.05)
    assert module.target_shift[5] == 0
    assert -2.3 < float(module.unseen_target_shift) < -1.3
    found = module.response_of_seen(torch.arange(module.n_tokens))["network"].detach().numpy()
    np.testing.assert_allclose(found, folds, atol=0.06)
    assert (explained[5] == 0).all()


def test_continuous_data_have_no_logarithm(world):
    network, weight, _, folds = world
    module = make_module(network, log_normalize=False)
    explained = fit_network(module, folds, np.full(folds.shape, 1e-6), np.zeros(8), network.weight)
    np.testing.assert_allclose(explained, folds, atol=0.03)
    own = network.names[network.edge_index[0]] != "drug"
    np.testing.assert_allclose(module.sem.weight.detach().numpy()[own], weight[own], atol=0.05)


def test_tokens_without_cells_are_not_used(world):
    network, _, shift, folds = world
    level = np.full(8, 20.0)
    response = np.log1p(level * np.exp(folds)) - np.log1p(level)
    response[3] = np.nan
    module = make_module(network)
    variance = np.where(np.isnan(response), np.nan, 1e-6)
    explained = fit_network(module, response, variance, level, network.weight)
    assert np.isfinite(explained).all()
    assert (explained[3] == 0).all()
    assert module.target_shift[3] == 0
    np.testing.assert_allclose(module.target_shift.detach().numpy()[[1, 2, 4]], shift[[1, 2, 4]], atol=0.1)


def test_noise_explains_more_where_there_is_more_of_it(world):
    """Edges that the data do not support are held near a multiple of their prior weight, and so near nothing."""
    network, _, _, folds = world
    rng = np.random.default_rng(0)
    noise = rng.normal(size=folds.shape)
    module = make_module(network)
    fit_network(module, noise, np.ones(folds.shape), np.full(8, 20.0), network.weight)
    assert module.sem.weight.abs().max() < 0.6


def test_nothing_to_fit(world):
    network, _, _, folds = world
    module = make_module(network)
    explained = fit_network(
        module, np.full(folds.shape, np.nan), np.full(folds.shape, np.nan), np.ones(8), network.weight
    )
    assert (explained == 0).all()
    assert (module.sem.weight == 0).all()
