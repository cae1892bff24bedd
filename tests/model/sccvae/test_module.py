"""The recommended module without training: its equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .modules import (
    CONFIGS,
    EDGES,
    N_GENES,
    N_PROGRAMMES,
    N_TOKENS,
    NODE_OF_GENE,
    NODE_OF_TOKEN,
    ask,
    eta_and_state,
    inputs_of,
    make_module,
    make_tensors,
)


@pytest.fixture(params=CONFIGS)
def config(request):
    return request.param


# ---------------------------------------------------------------------- what does not change anything


@pytest.mark.parametrize("sample_latent", [False, True])
def test_no_dosage_is_exactly_the_cell_itself(config, sample_latent):
    module = make_module(config)
    tensors = make_tensors(module)
    for inputs, dosage in ((inputs_of(0, 1), [0.0, 0.0]), (inputs_of(), torch.zeros(1, 0))):
        found = ask(module, tensors, dosage, inputs, sample_latent=sample_latent)
        if module.scale == "counts":
            assert torch.equal(found.mean, tensors["X"])
            assert torch.equal(found.distribution.sample(), tensors["X"])
        else:
            expression = module.log_expression(tensors["X"], module.library(tensors))
            assert torch.equal(found.mean, expression)


def test_no_dosage_leaves_expression_as_it_is_to_the_last_bit(config):
    module = make_module(config)
    eta = 6 * torch.rand(2000, N_GENES, generator=torch.Generator().manual_seed(0)).square()
    with torch.no_grad():
        found = module.perturb(
            eta,
            torch.ones(2000, module.n_state),
            torch.zeros(2000, N_TOKENS),
            module.response_of_seen(torch.arange(module.n_tokens)),
        )
    assert torch.equal(found, eta)


def test_no_strength_is_no_dosage(config):
    module = make_module(config)
    tensors = make_tensors(module)
    without = ask(module, tensors, [1.0, 1.0], inputs_of(0, 1, strength=0.0)).mean
    assert torch.equal(without, ask(module, tensors, [0.0, 0.0], inputs_of(0, 1)).mean)
    assert not torch.allclose(ask(module, tensors, [1.0, 1.0], inputs_of(0, 1)).mean, without)


def test_strength_and_dosage_are_one(config):
    module = make_module(config)
    tensors = make_tensors(module)
    by_dosage = ask(module, tensors, [0.6], inputs_of(0)).mean
    np.testing.assert_allclose(ask(module, tensors, [1.0], inputs_of(0, strength=0.6)).mean, by_dosage, rtol=1e-5)


# ---------------------------------------------------------------------- the equations


def shifted(module, dosage) -> np.ndarray:
    eta, state = eta_and_state(module)
    dosage = torch.as_tensor(dosage, dtype=torch.float32).expand(len(eta), -1)
    with torch.no_grad():
        return (
            module.perturb(eta, state, dosage, module.response_of_seen(torch.arange(module.n_tokens))) - eta
        ).numpy()


def test_a_target_is_its_documented_equation():
    module = make_module("all")
    eta, state = (value.double().numpy() for value in eta_and_state(module))
    get = lambda name: getattr(module, name).detach().double().numpy()
    system = np.eye(5)
    system[EDGES[0], EDGES[1]] -= module.sem.weight.detach().numpy()
    nodes = np.zeros((N_TOKENS, 5))
    for token, node in enumerate(NODE_OF_TOKEN):
        if node >= 0:
            nodes[token, node] = get("target_shift")[token]
    u = np.zeros((N_TOKENS, N_GENES))
    measured = np.array(NODE_OF_GENE) >= 0
    u[:, measured] = (nodes @ np.linalg.inv(system))[:, np.array(NODE_OF_GENE)[measured]]
    dosage = np.array([0.5, -1.0, 2.0, 1.0])
    activity = dosage @ get("programme_shift") + np.einsum("t,cs,tsp->cp", dosage, state, get("programme_state"))
    expected = np.log1p(np.expm1(eta) * np.exp(dosage @ u)) + activity @ get("loadings")
    np.testing.assert_allclose(shifted(module, dosage), expected - eta, rtol=1e-4, atol=1e-5)


def test_the_network_lets_expression_vanish_but_not_go_below_zero():
    module = make_module("network")
    with torch.no_grad():
        module.programme_shift.zero_()
        module.target_shift.fill_(-9.0)
        eta = 3 * torch.rand(50, N_GENES)
        found = module.perturb(
            eta,
            torch.zeros(50, 0),
            torch.eye(N_TOKENS)[:1].expand(50, -1),
            module.response_of_seen(torch.arange(module.n_tokens)),
        )
    np.testing.assert_allclose(found[:, 0], torch.log1p(torch.expm1(eta[:, 0]) * np.exp(-9.0)), atol=1e-5)
    assert (found > -1e-6).all()


@pytest.mark.parametrize("config", ["state", "normal", "continuous", "all continuous"])
def test_shifts_are_linear_in_the_dosage_and_additive_over_tokens(config):
    module = make_module(config)
    one = shifted(module, [1, 0, 0, 0])
    for dosage in (-1.0, 0.5, 3.0):
        np.testing.assert_allclose(shifted(module, [dosage, 0, 0, 0]), dosage * one, rtol=1e-4, atol=1e-5)
    both = shifted(module, [1, 0, 2, 0])
    np.testing.assert_allclose(both, one + 2 * shifted(module, [0, 0, 1, 0]), rtol=1e-4, atol=1e-5)


def test_the_network_multiplies_counts():
    """Log fold changes of the network are linear in the dosage, and those of two tokens add up."""
    module = make_module("network")
    with torch.no_grad():
        module.programme_shift.zero_()
    eta, _ = eta_and_state(module)

    def folds(dosage):
        after = torch.tensor(shifted(module, dosage)) + eta
        return (torch.expm1(after).log() - torch.expm1(eta).log()).numpy()

    one, other = folds([1, 0, 0, 0]), folds([0, 1, 0, 0])
    assert np.abs(one).max() > 0.1
    np.testing.assert_allclose(folds([-0.5, 0, 0, 0]), -0.5 * one, atol=2e-4)
    np.testing.assert_allclose(folds([1, 1, 0, 0]), one + other, atol=2e-4)


def test_network_response_is_a_row_of_the_inverse():
    module = make_module("network")
    with torch.no_grad():
        found = module.network_response(torch.tensor([2.0, -1.0, 5.0]), torch.tensor([0, 3, -1]))
    # 0 -> 1 -> 2 and 3 -> 2; genes 0, 1, 2 are these nodes, gene 8 is the node of another token
    expected = np.zeros((3, N_GENES))
    expected[0, :3] = 2 * np.array([1, 0.7, 0.7 * -0.5])
    expected[1, 2] = -0.9
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_state_changes_the_response():
    module = make_module("state")
    eta, _ = eta_and_state(module, n=2)
    dosage = torch.tensor([[1.0, 0, 0, 0]]).expand(2, -1)
    with torch.no_grad():
        response = module.response_of_seen(torch.arange(module.n_tokens))
        found = module.perturb(eta, torch.tensor([[0.0, 0], [1.5, 0]]), dosage, response) - eta
    average = module.programme_shift[0] @ module.loadings
    np.testing.assert_allclose(found[0], average.detach(), atol=1e-5)
    slope = 1.5 * module.programme_state[0, 0] @ module.loadings
    np.testing.assert_allclose(found[1], (average + slope).detach(), atol=1e-5)


def test_cells_are_placed_relative_to_the_center():
    module = make_module("state")
    at_center = torch.full((1, N_GENES), 2.0)
    assert (module.cell_state(at_center) == 0).all()
    moved = at_center + module.state_axes[:, 0]
    np.testing.assert_allclose(module.cell_state(moved), module.state_axes[:, :1].T @ module.state_axes, rtol=1e-5)


# ---------------------------------------------------------------------- cells


def test_counts_move_with_the_ratio_of_rates():
    module = make_module("state")
    tensors = make_tensors(module)
    found = ask(module, tensors, [2.0], inputs_of(0))
    drawn = found.distribution.sample()
    assert torch.equal(drawn, drawn.round())
    falls = found.distribution.target_mean < found.distribution.source_mean
    assert falls.any()
    assert not falls.all()
    share = (found.distribution.target_mean / found.distribution.source_mean)[falls]
    np.testing.assert_allclose(found.mean[falls], (tensors["X"][falls] * share), rtol=1e-5)
    assert (found.mean[~falls] >= tensors["X"][~falls]).all()
    assert (drawn <= tensors["X"])[falls].all()
    assert (drawn >= tensors["X"])[~falls].all()


def test_the_library_scales_rates():
    """A size factor takes the place of the total, and twice the library is twice the expected counts."""
    module = make_module("state")
    tensors = make_tensors(module)
    total = tensors["X"].sum(1, keepdim=True)
    assert torch.equal(module.library(tensors), total)
    assert torch.equal(module.library({**tensors, "size_factor": 3 * total.ravel()}), 3 * total)
    doubled = {**tensors, "X": 2 * tensors["X"]}
    ours, theirs = (ask(module, t, [1.0], inputs_of(0)).distribution for t in (tensors, doubled))
    np.testing.assert_allclose(2 * ours.target_mean, theirs.target_mean, rtol=1e-5)


def test_continuous_cells_keep_their_residual():
    module = make_module("all continuous")
    tensors = make_tensors(module)
    with torch.no_grad():
        eta = module.decode(module.latent(tensors), tensors["batch"])
        target = module.perturb(
            eta,
            module.cell_state(tensors["X"]),
            torch.ones(6, N_TOKENS),
            module.response_of_seen(torch.arange(module.n_tokens)),
        )
    found = ask(module, tensors, torch.ones(N_TOKENS), inputs_of(*range(N_TOKENS))).mean
    np.testing.assert_allclose(found - target, tensors["X"] - eta, atol=1e-5)


def test_log_expression_stays_at_or_above_zero():
    module = make_module("normal")
    found = ask(module, make_tensors(module), [40.0], inputs_of(0)).mean
    assert (found >= 0).all()
    assert (found == 0).any()


# ---------------------------------------------------------------------- how far responses may be off


def draw_of(module, dosage, seed, tensors, *tokens, **kwargs) -> np.ndarray:
    """Deviation of the prediction with drawn responses from that with the estimates; continuous, so that it is linear."""
    generator = lambda: torch.Generator().manual_seed(seed)
    inputs = inputs_of(*tokens, **kwargs)
    drawn = ask(module, tensors, dosage, inputs, sample_parameters=True, generator=generator()).mean
    return (drawn - ask(module, tensors, dosage, inputs, generator=generator()).mean).numpy()


def test_drawn_responses_belong_to_tokens_and_draws():
    module = make_module("all continuous")
    with torch.no_grad():
        module.response_error.copy_(torch.rand(N_TOKENS, N_GENES))
        module.unseen_error.fill_(3.0)
    tensors, others = make_tensors(module), make_tensors(module, seed=9)
    one = draw_of(module, [1.0], 0, tensors, 0)
    assert np.abs(one).max() > 0.1
    np.testing.assert_allclose(one, np.broadcast_to(one[:1], one.shape), atol=1e-5)  # the same for all cells
    np.testing.assert_allclose(draw_of(module, [1.0], 0, others, 0), one, atol=1e-5)  # and batches
    second = draw_of(module, [1.0], 0, tensors, 1)
    assert np.abs(second - one).max() > 0.1
    both = draw_of(module, [1.0, 1.0], 0, tensors, 0, 1)
    np.testing.assert_allclose(both, one + second, atol=1e-5)  # whatever else is asked in the same call
    assert np.abs(draw_of(module, [1.0], 1, tensors, 0) - one).max() > 0.1
    assert (draw_of(module, [0.0], 0, tensors, 0) == 0).all()
    many = np.array([draw_of(module, [1.0], seed, tensors, 0)[0] for seed in range(300)])
    np.testing.assert_allclose(many.std(0), module.response_error[0], rtol=0.2)
    unseen = np.array([draw_of(module, [1.0], seed, tensors, 0, seen=False)[0] for seed in range(300)])
    np.testing.assert_allclose(unseen.std(0), 3.0, rtol=0.2)


# ---------------------------------------------------------------------- tokens


def test_seen_tokens_respond_as_in_training(config):
    module = make_module(config)
    in_training, asked = (
        module.response_of_seen(torch.arange(module.n_tokens)),
        module.response_of(inputs_of(2, 0, 1, 3)),
    )
    for name, value in asked.items():
        np.testing.assert_allclose(value.detach(), in_training[name][[2, 0, 1, 3]].detach(), atol=1e-6)


def test_unseen_tokens_respond_as_features_and_network_say():
    module = make_module("all")
    inputs = inputs_of(0, 3, seen=False)
    inputs["has_features"] = torch.tensor([1.0, 0.0])
    found = module.response_of(inputs)
    predicted = module.unseen_response + (inputs["features"][0] - module.feature_center) @ module.feature_map
    np.testing.assert_allclose(found["shift"][0], predicted[:N_PROGRAMMES], atol=1e-6)
    np.testing.assert_allclose(found["state"][0].ravel(), predicted[N_PROGRAMMES:], atol=1e-6)
    np.testing.assert_allclose(found["shift"][1], module.unseen_response[:N_PROGRAMMES], atol=1e-6)
    own = module.network_response(torch.full((2,), -0.8), inputs["node"])
    own[1] += module.unseen_network  # the second regulates nothing: the average of the others stands in
    np.testing.assert_allclose(found["network"].detach(), own.detach(), atol=1e-6)
