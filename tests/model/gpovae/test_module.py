"""The module of GPOVAE: sizes, published terms, and what nodes do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS, CONTROL_PREFIX
from scvi_causal.model.gpovae._matching import FixedPairing, nearest_by_transport
from scvi_causal.model.gpovae._module import GPOVAEModule
from scvi_causal.model.gpovae._options import network_options


def make_module(preset="recommended", n_genes=4, n_tokens=2, n_nodes=5, n_measured=4, n_kinds=0, **options):
    options = network_options(preset, n_kinds > 0, **{"n_guide_hidden": 4, "n_guide_layers": 2, **options})
    torch.manual_seed(0)
    module = GPOVAEModule(
        n_genes, n_tokens, 3, 8, 1, n_kinds=n_kinds, n_nodes=n_nodes, n_measured=n_measured, options=options
    )
    module.set_nodes(torch.tensor([0, -1, 1, 2, 3])[:n_nodes])
    module.cells_per_token.fill_(2.0)
    module.cells_per_quality.fill_(6.0)
    return module


@pytest.fixture
def batch():
    key = REGISTRY_KEYS.X_KEY
    return {
        key: torch.tensor([[1.0, 0.0, 3.0, 4.0], [2.0, 2.0, 0.0, 0.0]]),
        CONTROL_PREFIX + key: torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]),
        CAUSAL_KEYS.PERTURBATION: torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        CAUSAL_KEYS.QUALITY: torch.zeros(2, 1),
        CAUSAL_KEYS.INDICES: torch.tensor([[0], [1]]),
        REGISTRY_KEYS.BATCH_KEY: torch.zeros(2, 1, dtype=torch.int64),
    }


@pytest.mark.parametrize(
    ("n_nodes", "n_genes", "n_latent", "n_parameters"), [(655, 8749, 200, 8_783_233), (1546, 8563, 100, 12_333_934)]
)
def test_published_sizes(n_nodes, n_genes, n_latent, n_parameters):
    options = network_options("paper", True)
    with torch.device("meta"):  # count without memory
        module = GPOVAEModule(
            n_genes, n_nodes, n_latent, 400, 1, n_kinds=1, n_nodes=n_nodes, n_measured=n_nodes, options=options
        )
    assert sum(p.numel() for p in module.parameters()) == n_parameters


def test_published_change_of_cells(batch):
    module = make_module("paper")
    module.typical_total.fill_(8.0)
    change = module.change_of_nodes(batch)
    expected = (torch.log1p(batch["X"] * torch.tensor([[1.0], [2.0]])) - np.log(3.0)).abs()
    assert torch.allclose(change[:, [0, 2, 3, 4]], expected)
    assert not change[:, 1].any()  # a token that is no gene


def test_published_terms(batch):
    module = make_module("paper", prior_of_unperturbed=False)
    terms = module.extra_terms(batch, {})
    change = module.change_of_nodes(batch)
    assert terms["alignment"].item() == pytest.approx(float(100 * (change - 0.8).abs().mean()), rel=1e-5)
    assert terms["density"].item() == pytest.approx(2.5)


def test_effects_may_stay_in_the_objective(batch):
    module = make_module(alignment_weight=2.0)
    assert "alignment" not in make_module().extra_terms(batch, {})
    mechanisms = module.mechanisms
    with torch.no_grad():
        mechanisms.effect[0] = 1.0
        mechanisms.noise[0, 2:] = 0.5
        mechanisms.noise[1] = 0.1  # no cell of the batch carries it
    mean, variance = mechanisms.moments(torch.tensor([0]))
    misfit = 0.5 * (((1.0 - mean[0, 2:]).square() + variance[0, 2:]) / 0.5).sum()
    # one of two cells of the batch carries the token, and two training cells do
    assert module.extra_terms(batch, {})["alignment"].item() == pytest.approx(2.0 * misfit.item() / 4, rel=1e-5)


def test_rows_of_nodes_that_nobody_perturbed_are_held_at_their_prior(batch):
    held = make_module("paper", prior_of_unperturbed=True)
    term = held.extra_terms(batch, {})["unperturbed"]
    assert term.item() == pytest.approx(3 * 5 * 0.087177 / 6, rel=1e-4)  # KL at even odds from a prior of 0.3
    term.backward()
    assert held.mechanisms.mask_logits.grad[2:].gt(0).all()
    assert not held.mechanisms.mask_logits.grad[:2].any()
    assert "unperturbed" not in make_module("paper").extra_terms(batch, {})


def test_indirect_effects_follow_from_direct_ones():
    mechanisms = make_module(n_tokens=3).mechanisms
    with torch.no_grad():
        mechanisms.location.copy_(torch.arange(15.0).view(3, 5) - 4)
        mechanisms.mask_logits.fill_(20.0)
        mechanisms.shares[0, 1] = 0.5
        mechanisms.size[0] = 2.0
    b = mechanisms.location
    reached = b[0] + 0.5 * b[1] * torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])  # what 1 does to itself is in the share
    tokens = torch.tensor([0, 1])
    assert torch.allclose(mechanisms.expected_shift(tokens), torch.stack([2.0 * reached, b[1]]), atol=1e-5)
    torch.manual_seed(0)
    with torch.no_grad():
        mechanisms.log_scale.fill_(-3.0)
        drawn = mechanisms.draw(tokens, 4000).shift.mean(0)
    assert torch.allclose(drawn, mechanisms.expected_shift(tokens), atol=0.02)
    mean, variance = mechanisms.moments(tokens)
    assert torch.allclose(mean[0] * 2, (2.0 * reached).where(torch.arange(5) > 0, mean[0] * 2), atol=1e-4)
    assert variance[1, 0].item() == pytest.approx(np.exp(-6.0), rel=1e-2)


def test_a_node_moves_its_gene_and_no_other():
    module = make_module()
    covariates, z = torch.zeros(1, 0), torch.randn(1, 3)
    condition = torch.zeros(1, 8)
    before = module.decoder(module.combine(z, condition), covariates)
    condition[0, 3] = 1.0  # the node of gene 2
    change = module.decoder(module.combine(z, condition), covariates) - before
    others = change[0, [0, 1, 3]]
    assert (change[0, 2] - others[0]).item() == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(others, others[0].expand(3), atol=1e-6)  # all shares add up to 1
    condition = torch.zeros(1, 8)
    condition[0, 1] = 5.0  # the node of a token that is no gene
    assert torch.allclose(module.decoder(module.combine(z, condition), covariates), before)


def test_genes_that_are_no_nodes_follow_freely():
    module = make_module(n_nodes=3, n_measured=2)
    assert module.decoder.loadings.others.weight.shape == (2, 3)
    with torch.no_grad():
        module.decoder.loadings.others.weight[1, 0] = 2.0
    covariates, z, condition = torch.zeros(1, 0), torch.zeros(1, 3), torch.zeros(1, 6)
    before = module.decoder(module.combine(z, condition), covariates)
    condition[0, 0] = 1.0
    change = (module.decoder(module.combine(z, condition), covariates) - before)[0]
    assert torch.allclose(change - change[1], torch.tensor([1.0, 0.0, 0.0, 2.0]), atol=1e-5)


def test_artifacts_come_off_the_basal_state():
    module = make_module(n_kinds=1, artifact_loss="none")
    expression = torch.randn(2, 4)
    condition = torch.zeros(2, 8)
    mean, variance = module.encode(expression, condition, torch.zeros(2, module.n_covariates))
    moved, _ = module.encode(
        expression, condition + torch.tensor([0.0] * 5 + [1.0, 0.0, 0.0]), torch.zeros(2, module.n_covariates)
    )
    assert torch.allclose((mean - moved)[:, 1:], torch.zeros(2, 2))
    # prior and encoder are combined: of a unit, the share that the prior leaves
    assert torch.allclose((mean - moved)[:, 0], 1.0 - variance[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mechanism": "dense"}, "its network"),
        ({"start_at_effects": True}, "factorises"),
        ({"alignment": "cells", "indirect": "mediated"}, "alignment='effects'"),
        ({"guide": "correlated"}, "spike-and-slab"),
        ({"alignment_weight": -1.0}, "0 or a positive"),
        ({"matching": "nearest"}, "'random', 'ot'"),
        ({"matching": "ot", "n_hops": 2}, "matching, n_hops belong to alignment='cells'"),
    ],
)
def test_contradictions(options, message):
    with pytest.raises(ValueError, match=message):
        network_options("recommended", False, **options)


def test_transport_finds_the_nearest_control_of_its_own():
    pytest.importorskip("ot")
    controls = np.array([[0.0, 0.0], [300.0, 0.0], [0.0, 300.0]])
    assert nearest_by_transport(controls[[2, 0, 1]] + 1.0, controls).tolist() == [2, 0, 1]
    assert FixedPairing(np.array([3, 4, 5])).draw(np.array([2, 0]), None).tolist() == [5, 3]
