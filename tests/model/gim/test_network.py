"""From features to interventions: combinations, and what is special about a perturbation of a node itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from scvi_causal.model.gim._conditions import own_nodes, part_features, split_parts, varies
from scvi_causal.model.gim._interventions import Interventions, distinct_rows
from scvi_causal.model.gim._network import InterventionNetwork, combine


def test_combinations_hit_what_any_part_hits_and_add_up():
    logit, size = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    members = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.float64)
    a, s = combine(logit, size, members)
    p = torch.sigmoid(logit)
    for row, chosen in enumerate(([0], [0, 1], [0, 1, 2], [2])):
        torch.testing.assert_close(torch.sigmoid(a[row]), 1 - (1 - p[chosen]).prod(0))
        torch.testing.assert_close(torch.sigmoid(a[row]) * s[row], (p[chosen] * size[chosen]).sum(0))
    assert torch.equal(a[0], logit[0])
    assert torch.equal(s[3], size[2])


@pytest.mark.parametrize("value", [-40.0, 40.0])
def test_combinations_of_extremes_stay_finite(value):
    logit, size = torch.full((2, 3), value, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    a, s = combine(logit, size, torch.ones(1, 2))
    (a.sum() + (torch.sigmoid(a) * s).sum()).backward()
    for tensor in (a, s, logit.grad, size.grad):
        assert torch.isfinite(tensor).all()


def test_combination_of_two_is_the_mixture_over_both_indicators():
    """What the two-term form keeps of the exact distribution over both tokens: probability and expectation."""
    logit, size = torch.tensor([[0.3], [-1.0]]), torch.tensor([[2.0], [-0.5]])
    p = torch.sigmoid(logit)[:, 0]
    chance, moved = 0.0, 0.0
    for hit in itertools.product([0, 1], repeat=2):
        weight = float(torch.where(torch.tensor(hit) > 0, p, 1 - p).prod())
        chance += weight * (sum(hit) > 0)
        moved += weight * sum(h * float(s) for h, s in zip(hit, size[:, 0], strict=True))
    a, s = combine(logit, size, torch.ones(1, 2))
    assert float(torch.sigmoid(a)) == pytest.approx(chance, abs=1e-6)
    assert float(torch.sigmoid(a) * s) == pytest.approx(moved, abs=1e-6)


def test_network_starts_without_a_preference():
    network = InterventionNetwork(5, 4, n_hidden=8).eval()
    logit, size = network(torch.randn(6, 5), torch.zeros(6, 4))
    assert (torch.sigmoid(logit) - 0.3).abs().max() < 0.02
    assert size.abs().max() < 0.1
    assert all(p.ndim == 2 for p in network.decayed())


def test_own_node_term_reaches_only_the_own_node():
    network = InterventionNetwork(2, 3, n_hidden=4, own_node=True).eval()
    with torch.no_grad():
        network.own_logit.fill_(5.0)
        network.own_size.fill_(-2.0)
    x = torch.randn(2, 2)
    own = own_nodes(torch.tensor([1, -1]), 3)
    assert own.tolist() == [[0, 1, 0], [0, 0, 0]]
    plain, with_own = network(x, torch.zeros(2, 3)), network(x, own)
    torch.testing.assert_close(with_own[0] - plain[0], 5.0 * own)
    torch.testing.assert_close(with_own[1] - plain[1], -2.0 * own)
    assert not InterventionNetwork(2, 3).own_size.requires_grad


def test_parts_are_tokens_at_dosages():
    conditions = csr_matrix(np.array([[1.0, 0, 0], [2.0, 0, 0], [1.0, 0, 0.5], [0, 0, 0.5]], dtype=np.float32))
    parts = split_parts(conditions)
    assert list(zip(parts.token.tolist(), parts.dosage.tolist(), strict=True)) == [(0, 1.0), (0, 2.0), (2, 0.5)]
    assert parts.members.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]]
    assert varies(conditions)
    assert not varies(csr_matrix(np.eye(2, dtype=np.float32)))


def test_features_of_a_part_have_its_dosage_and_the_log_of_its_size():
    x, dosage = torch.tensor([[7.0], [8.0]]), torch.tensor([2.0, -0.5])
    assert torch.equal(part_features(x, dosage, with_dosage=False), x)
    expected = torch.tensor([[7.0, 2.0, np.log(2)], [8.0, -0.5, np.log(0.5)]])
    torch.testing.assert_close(part_features(x, dosage, with_dosage=True), expected, check_dtype=False)


def test_draws_of_a_row_do_not_depend_on_the_other_rows():
    found = Interventions(torch.full((3, 50), 0.5), torch.ones(3, 50))
    dosage = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    both = found.draw_by_row(dosage, seed=4).probability
    alone = found.take(torch.tensor([1])).draw_by_row(dosage[1:2], seed=4).probability
    assert torch.equal(both[1:2], alone)
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both, found.draw_by_row(dosage, seed=5).probability)
    assert set(both.unique().tolist()) == {0.0, 1.0}


def test_rows_without_any_token_are_control():
    rows, which = distinct_rows(torch.zeros(4, 0))
    assert rows.shape == (1, 0)
    assert which.tolist() == [0, 0, 0, 0]
