"""Mechanisms on a graph: level by level is the same as solving, and abduction, action, prediction is a translation (P9)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_causal.model.gim._interventions import Interventions
from scvi_causal.model.gim._mechanisms import Mechanisms
from scvi_causal.model.gim._module import GIMModule
from scvi_causal.nn import hard_mean, shift_moments

D = 6


def random_graph(seed=0, d=D):
    rng = np.random.default_rng(seed)
    weight = np.triu(rng.normal(size=(d, d)) * (rng.random((d, d)) < 0.6), 1)
    order = rng.permutation(d)
    return weight[np.ix_(order, order)]


def make(n_hidden=0, seed=0) -> Mechanisms:
    weight = random_graph(seed)
    found = Mechanisms(D, max(1, int((weight != 0).sum(0).max())), n_hidden).double()
    generator = torch.Generator().manual_seed(seed)
    b, sd = (torch.randn(D, generator=generator, dtype=torch.float64) for _ in range(2))
    found.fill(weight, weight != 0, b, 0.3 * sd, 0.1 * sd)
    return found


def test_table_of_parents_is_the_graph():
    weight = random_graph()
    np.testing.assert_allclose(make().dense().detach().numpy(), weight)
    levels = make().level.numpy()
    for i, j in np.argwhere(weight != 0):
        assert levels[i] < levels[j]


def test_nodes_without_any_edge():
    found = Mechanisms(3, 1)
    found.fill(np.zeros((3, 3)), np.zeros((3, 3), dtype=bool), torch.ones(3), torch.zeros(3), torch.zeros(3))
    x = torch.randn(4, 3)
    torch.testing.assert_close(found.expected(x), torch.ones(4, 3))
    torch.testing.assert_close(found.spread(x), x)


@torch.no_grad()
def test_spreading_solves_the_system():
    found, shift = make(), torch.randn(5, D, dtype=torch.float64)
    expected = shift @ torch.linalg.inv(torch.eye(D, dtype=torch.float64) - found.dense())
    torch.testing.assert_close(found.spread(shift), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_running_level_by_level_is_the_closed_form():
    found = make()
    noise, probability, size = (torch.randn(7, D, dtype=torch.float64) for _ in range(3))
    probability = torch.sigmoid(probability)
    weight, b = found.dense(), found.intercept
    shifted, _ = shift_moments(weight, b, torch.ones(D, dtype=torch.float64), probability, size)
    nothing = torch.zeros_like(noise)
    torch.testing.assert_close(found.run(nothing, probability, size, hard=False), shifted, rtol=0, atol=1e-12)
    hard = found.run(nothing, probability, size, hard=True)
    torch.testing.assert_close(hard, hard_mean(weight, b, probability, size), rtol=0, atol=1e-12)
    natural = found.run(noise, nothing, nothing, hard=False)
    torch.testing.assert_close(natural - found.expected(natural), noise, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_network_mechanism_starts_linear_and_ignores_strangers():
    linear, bent = make(), make(n_hidden=5)
    x = torch.randn(4, D, dtype=torch.float64)
    torch.testing.assert_close(linear.expected(x), bent.expected(x))
    bent.last.normal_()
    assert (bent.expected(x) - linear.expected(x)).abs().max() > 0.1
    roots = bent.has_parent.sum(1) == 0
    torch.testing.assert_close(bent.expected(x)[:, roots], linear.expected(x)[:, roots])
    for j in range(D):
        strangers = np.setdiff1d(np.arange(D), np.flatnonzero(random_graph()[:, j]))
        changed = x.clone()
        changed[:, strangers] += 5.0
        torch.testing.assert_close(bent.expected(changed)[:, j], bent.expected(x)[:, j])
    # at the mean of the controls, which is 0, the intercept keeps its meaning
    torch.testing.assert_close(bent.expected(torch.zeros(1, D, dtype=torch.float64))[0], bent.intercept)


# ---------------------------------------------------------------------- abduction, action, prediction


def module_with(mechanisms: Mechanisms, hard: bool) -> GIMModule:
    module = GIMModule("continuous", hard=hard, n_mechanism_hidden=mechanisms.n_hidden)
    module.mechanisms = mechanisms
    module.nodes = lambda x, strata: x
    return module


def known(targets, size=None) -> Interventions:
    targets = torch.as_tensor(targets, dtype=torch.float64).reshape(1, -1)
    return Interventions(
        targets, torch.zeros_like(targets) if size is None else torch.as_tensor(size).double().reshape(1, -1)
    )


NOTHING = known([0.0] * D)
SOME = known([0, 1.0, 0, 1.0, 0, 0], [0, 2.0, 0, -1.0, 0, 0])


@torch.no_grad()
@pytest.mark.parametrize("hard", [False, True], ids=["shift", "hard"])
@pytest.mark.parametrize("n_hidden", [0, 4], ids=["linear", "network"])
def test_p09_no_intervention_returns_the_cell_exactly(hard, n_hidden):
    mechanisms = make(n_hidden)
    if n_hidden:
        mechanisms.last.normal_()
    module, x = module_with(mechanisms, hard), torch.randn(5, D, dtype=torch.float64)
    for own in (NOTHING, SOME):
        assert not module._change_of_cells(x, None, own, own).any()


@torch.no_grad()
def test_p09_shift_is_a_translation_of_the_cell():
    mechanisms = make()
    module, x = module_with(mechanisms, hard=False), torch.randn(50, D, dtype=torch.float64)
    change = module._change_of_cells(x, None, NOTHING, SOME)
    expected = mechanisms.spread(SOME.expected).expand_as(x)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-13)
    back = module._change_of_cells(x + change, None, SOME, NOTHING)
    torch.testing.assert_close(back, -change, rtol=0, atol=1e-13)


@torch.no_grad()
def test_p09_mean_of_the_translated_controls_is_the_interventional_mean():
    mechanisms = make()
    noise = torch.randn(20_000, D, dtype=torch.float64)
    noise = (noise - noise.mean(0)) * mechanisms.log_sd.exp()
    nothing = torch.zeros_like(noise)
    controls = mechanisms.run(noise, nothing, nothing, hard=False)
    moved = controls + module_with(mechanisms, False)._change_of_cells(controls, None, NOTHING, SOME)
    expected, _ = shift_moments(
        mechanisms.dense(), mechanisms.intercept, mechanisms.log_sd.exp(), SOME.probability[0], SOME.size[0]
    )
    torch.testing.assert_close(moved.mean(0), expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_hard_interventions_set_targets_and_keep_the_noise_of_the_others():
    mechanisms = make()
    module, x = module_with(mechanisms, hard=True), torch.randn(5, D, dtype=torch.float64)
    noise = x - mechanisms.expected(x)
    after = x + module._change_of_cells(x, None, NOTHING, SOME)
    targets = SOME.probability[0] > 0
    ratio = torch.exp(mechanisms.log_target_sd - mechanisms.log_sd)
    torch.testing.assert_close(after[:, targets], (SOME.size + ratio * noise)[:, targets])
    others = (after - mechanisms.expected(after))[:, ~targets]
    torch.testing.assert_close(others, noise[:, ~targets])
    # a cell that was set gives its noise back, and is where it came from when the intervention is taken away
    torch.testing.assert_close(after + module._change_of_cells(after, None, SOME, NOTHING), x)
