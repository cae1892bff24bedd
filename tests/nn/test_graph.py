from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_causal.nn import SparseSEM, break_cycles, random_dag_mask


def is_acyclic(source, target, n) -> bool:
    try:
        SparseSEM(torch.tensor(np.stack([source, target])), n)
    except ValueError:
        return False
    return True


def test_acyclic_graphs_lose_nothing():
    source, target = np.nonzero(random_dag_mask(30, 0.3, 0))
    place = np.random.default_rng(0).permutation(30)  # whatever the numbering
    assert break_cycles(place[source], place[target], 30).all()


def test_loops_go():
    assert break_cycles(np.array([0, 1, 1]), np.array([0, 1, 2]), 3).tolist() == [False, False, True]


@pytest.mark.parametrize("heavy", [0, 1])
def test_of_a_feedback_the_heavier_edge_stays(heavy):
    weight = np.full(2, 0.1)
    weight[heavy] = -5.0  # a repressor is no lighter than an activator
    keep = break_cycles(np.array([0, 1]), np.array([1, 0]), 2, weight)
    assert keep[heavy]
    assert keep.sum() == 1


def test_random_graphs_become_acyclic_at_a_small_price():
    rng = np.random.default_rng(0)
    source, target = rng.integers(0, 60, (2, 240))
    assert not is_acyclic(source, target, 60)
    weight = rng.gamma(1.0, 1.0, 240)
    keep = break_cycles(source, target, 60, weight)
    assert is_acyclic(source[keep], target[keep], 60)
    assert keep.mean() > 0.7  # any order of the nodes would keep half of them
    assert weight[keep].mean() > weight[~keep].mean()


def test_no_edges():
    assert break_cycles(np.zeros(0, int), np.zeros(0, int), 4).shape == (0,)


def test_random_masks():
    mask = random_dag_mask(512, 0.03, 0)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert not np.tril(mask).any()
    expected = 0.03 * 512 * 511 / 2
    assert abs(mask.sum() - expected) < 4 * np.sqrt(expected)
    np.testing.assert_array_equal(mask, random_dag_mask(512, 0.03, 0))
    assert (mask != random_dag_mask(512, 0.03, 1)).any()
