"""Refinement in closed form: masks, masked softmax, the background fixed point, dropout as ridge."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scvi_causal.nn._edges import edge_softmax
from scvi_causal.nn._refinement import (
    AttentionRefinement,
    Candidates,
    LinearRefinement,
    background,
    sample_positions,
)

SIGMOID_4 = 1 / (1 + math.exp(-4))


def candidates_of(n=4, prior=((0, 1), (2, 1), (3, 0)), loops=False, keep_prior=1.0, keep_other=1.0):
    own = torch.arange(n) * (n + 1)
    positions = torch.tensor([target * n + source for source, target in prior])
    if loops:
        return Candidates(n, n, torch.cat([positions, own]), own[:0], keep_prior, keep_other)
    return Candidates(n, n, positions, own, keep_prior, keep_other)


def masked_softmax(candidates, logits, positions):
    edges = candidates.edges(positions)
    matrix = torch.zeros(candidates.n_targets, candidates.n_sources)
    matrix[edges.target, edges.source] = edge_softmax(logits.flatten()[positions], edges)
    return matrix


# ---------------------------------------------------------------------- masks


def test_full_mask_is_the_row_softmax():
    logits = torch.randn(4, 4)
    candidates = candidates_of(loops=True)
    found = masked_softmax(candidates, logits, candidates.sample(torch.Generator().manual_seed(0)))
    torch.testing.assert_close(found, logits.softmax(1))


def test_prior_mask_is_supported_on_the_prior():
    logits = torch.randn(4, 4)
    candidates = candidates_of(loops=True, keep_other=0.0)
    found = masked_softmax(candidates, logits, candidates.sample(torch.Generator().manual_seed(0)))
    assert ((found > 0) == candidates.is_prior.view(4, 4)).all()
    torch.testing.assert_close(found.sum(1), torch.ones(4))


def test_a_row_with_only_its_self_loop_is_the_identity():
    logits = torch.randn(4, 4)
    candidates = candidates_of(prior=((0, 1),), loops=True, keep_other=0.0)
    found = masked_softmax(candidates, logits, candidates.prior)
    torch.testing.assert_close(found[2:], torch.eye(4)[2:])


def test_keep_rates():
    assert pytest.approx(0.98201379, abs=1e-8) == SIGMOID_4
    n, own = 120, 10
    prior = torch.randperm(n * n)[:2000]
    candidates = Candidates(n, n, prior, torch.arange(own), SIGMOID_4, 1 - SIGMOID_4)
    generator, counts, n_draws = torch.Generator().manual_seed(0), torch.zeros(n * n), 200
    for _ in range(n_draws):
        positions = candidates.sample(generator)
        assert (positions.diff() > 0).all()
        counts[positions] += 1
    assert not counts[:own].any()
    for mask, rate in ((candidates.is_prior, SIGMOID_4), (candidates.is_other, 1 - SIGMOID_4)):
        total = int(mask.sum()) * n_draws
        sd = math.sqrt(rate * (1 - rate) / total)
        assert abs(float(counts[mask].sum()) / total - rate) < 4 * sd
        # and every single edge: no place is preferred
        spread = counts[mask] / n_draws
        assert float(spread.std()) == pytest.approx(math.sqrt(rate * (1 - rate) / n_draws), rel=0.06)
    assert candidates.expected_active == pytest.approx(float(counts.sum()) / n_draws, rel=0.02)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 50)])
def test_certain_positions(probability, expected):
    assert len(sample_positions(50, probability, torch.Generator().manual_seed(0))) == expected


def test_neighbouring_positions_are_independent():
    generator = torch.Generator().manual_seed(1)
    drawn = torch.zeros(4000, 20)
    for i in range(4000):
        drawn[i, sample_positions(20, 0.3, generator)] = 1
    correlation = np.corrcoef(drawn.numpy().T)
    assert np.abs(correlation[~np.eye(20, dtype=bool)]).max() < 4.5 / math.sqrt(4000)


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_rates_have_to_be_probabilities(rate):
    with pytest.raises(ValueError, match=f"keep_other={rate} is no probability"):
        candidates_of(keep_other=rate)


# ---------------------------------------------------------------------- weights and background


@pytest.mark.parametrize(
    ("n_genes", "expected"), [(2013, 0.159991), (2048, 0.163631), (2000, 0.158638), (5000, 0.383897)]
)
def test_background_of_the_published_penalty(n_genes, expected):
    assert background(20 / n_genes**2, 4e-7) == pytest.approx(expected, abs=1e-6)


def test_background_without_penalty_or_decay():
    assert background(0.0, 4e-7) == 0.5
    assert background(1e-6, 0.0) == 0.0


def test_rescaled_weight_is_the_sigmoid_of_the_logit():
    network = AttentionRefinement(candidates_of(loops=True))
    network.edge.data.normal_()
    weight = network.edge.detach().exp()
    torch.testing.assert_close(network.strength(), 1 / (1 + 1 / weight))


def test_gradient_of_the_penalty():
    network, rho = AttentionRefinement(candidates_of(loops=True)), 20 / 16
    network.edge.data.normal_()
    (rho * network.penalty()).backward()
    sigma = torch.sigmoid(network.edge.detach())
    torch.testing.assert_close(network.edge.grad, rho * sigma * (1 - sigma))


def test_an_edge_without_data_rests_at_the_background():
    """Adam with the penalty and its L2 term alone, from the start at 1."""
    logit = torch.nn.Parameter(torch.ones(1, dtype=torch.double))
    optimizer = torch.optim.Adam([logit], lr=0.01, weight_decay=4e-7)
    for _ in range(1500):
        optimizer.zero_grad()
        (20 / 2013**2 * torch.sigmoid(logit)).sum().backward()
        optimizer.step()
    assert float(torch.sigmoid(logit.detach())) == pytest.approx(0.159991, abs=2e-3)


# ---------------------------------------------------------------------- the two models


def test_attention_network_against_dense_layers():
    torch.manual_seed(0)
    candidates = candidates_of(loops=True)
    network = AttentionRefinement(candidates, n_covariates=2, encoder_sizes=(3, 3), decoder_sizes=(5, 2))
    network.edge.data.normal_()
    for bias in network.biases:
        bias.data.normal_()
    genes, covariates = torch.randn(6, 4), torch.eye(2)[torch.tensor([0, 1, 0, 1, 1, 0])]
    positions = candidates.prior
    s = masked_softmax(candidates, network.edge.detach(), positions)
    h = torch.cat([genes[:, :, None], network.features.expand(6, -1, -1), covariates[:, None].expand(-1, 4, -1)], 2)
    for weight, bias, relu in zip(network.weights, network.biases, network.relu, strict=True):
        h = s @ h @ weight + bias
        h = torch.relu(h) if relu else h
    location, sd = network(genes, covariates, positions)
    torch.testing.assert_close(location, h[..., 0])
    torch.testing.assert_close(sd, torch.nn.functional.softplus(h[..., 1]) + 1e-3)


def test_linear_form_is_a_masked_sum():
    candidates = candidates_of(keep_prior=0.5, keep_other=0.25)
    network = LinearRefinement(candidates)
    network.edge.data.normal_()
    genes = torch.randn(5, 4)
    positions = torch.tensor([1, 4, 6, 11])
    weights = torch.zeros(16)
    weights[positions] = network.edge.detach()[positions] / candidates.keep_probability(positions)
    expected = genes @ weights.view(4, 4).T
    batch = {"genes": genes, "sources": genes, "observed": torch.ones(5, 4)}
    loss = network.loss(batch, positions)
    torch.testing.assert_close(
        loss, 0.5 * (genes - expected).square().mean() + 0.5 * torch.tensor(math.log(2 * math.pi))
    )


def test_dropping_edges_is_a_ridge():
    """The gradient averaged over masks is that of ridge regression with (1 - q) / q."""
    torch.manual_seed(0)
    rates = {True: 0.8, False: 0.3}
    candidates = Candidates(3, 1, torch.tensor([0]), torch.zeros(0, dtype=torch.int64), rates[True], rates[False])
    x = torch.randn(400, 3, dtype=torch.double)
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    y = x @ torch.tensor([[0.5], [0.4], [-0.3]], dtype=torch.double)
    network = LinearRefinement(candidates).double()
    network.edge.data.copy_(torch.tensor([0.3, 0.2, 0.1]))
    batch = {"genes": y, "sources": x, "observed": torch.ones_like(y)}
    total, n = torch.zeros(3, dtype=torch.double), 0.0
    for mask in range(8):  # every mask with its probability
        kept = torch.tensor([j for j in range(3) if mask >> j & 1], dtype=torch.int64)
        chance = math.prod(q if mask >> j & 1 else 1 - q for j, q in enumerate((0.8, 0.3, 0.3)))
        network.zero_grad()
        network.loss(batch, kept).backward()
        total += chance * network.edge.grad
        n += chance
    assert n == pytest.approx(1)
    w = network.edge.detach()
    ridge = torch.tensor([0.2 / 0.8, 0.7 / 0.3, 0.7 / 0.3], dtype=torch.double)
    expected = -(x.T @ (y - x @ w[:, None])).squeeze() / 400 + ridge * w
    torch.testing.assert_close(total, expected)


def test_what_is_not_observed_has_no_part():
    candidates = candidates_of()
    network = LinearRefinement(candidates)
    network.edge.data.normal_()
    genes, observed = torch.randn(5, 4), torch.ones(5, 4)
    observed[2, 1] = 0.0
    batch = {"genes": genes, "sources": genes.clone(), "observed": observed}
    before = network.loss(batch, candidates.prior)
    genes[2, 1] = 100.0
    torch.testing.assert_close(network.loss({**batch, "genes": genes}, candidates.prior), before)
