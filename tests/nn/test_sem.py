"""Closed forms of the linear structural equation models, P1 to P5 and P13 of the checks against the publication."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_causal.nn import DenseSEM, SparseSEM, random_dag_mask


def dense(weight, mask=None) -> DenseSEM:
    """In double precision, with given weights."""
    weight = torch.as_tensor(weight, dtype=torch.float64)
    sem = DenseSEM(torch.ones_like(weight).triu(1) if mask is None else mask).double()
    sem.weight.data.copy_(weight)
    return sem


def inverse(sem) -> torch.Tensor:
    adjacency = sem.adjacency().detach()
    return torch.linalg.inv(torch.eye(sem.n_nodes, dtype=adjacency.dtype) - adjacency)


@pytest.fixture
def three():
    return dense([[0, 0.5, 0], [0, 0, 2], [0, 0, 0]])


@pytest.fixture
def big():
    """The published size: all 130,816 edges, weights from N(0, 0.1^2)."""
    torch.manual_seed(0)
    return DenseSEM(torch.ones(512, 512).triu(1)).double()


@pytest.fixture
def sparse_mask():
    """A graph of 40 nodes in which most nodes are not descendants of most others."""
    return torch.from_numpy(random_dag_mask(40, 0.06, seed=3))


# ---------------------------------------------------------------------- the published checks


@pytest.mark.parametrize("without", ["weights", "edges"])
def test_p01_without_a_graph_nodes_are_their_input(without):
    z, shift = torch.randn(4, 6), torch.rand(4, 6)
    sem = DenseSEM(torch.zeros(6, 6) if without == "edges" else torch.ones(6, 6).triu(1), init_sd=1.0)
    if without == "weights":
        sem.weight.data.zero_()
    else:
        assert sem.weight.abs().min() > 0  # masked, not zero
    assert torch.equal(sem(z), z)
    assert torch.equal(sem(z + shift), z + shift)


def test_p02_three_node_example(three):
    rows = torch.eye(3, dtype=torch.float64)
    expected = torch.tensor([[1, 0.5, 1], [0, 1, 2], [0, 0, 1]], dtype=torch.float64)
    assert torch.equal(three(rows), expected)
    z = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    np.testing.assert_allclose(three(z).detach(), [[1, 0.5, 1]], rtol=1e-15)
    np.testing.assert_allclose(three(z + torch.tensor([[0, 0.3, 0]])).detach(), [[1, 0.8, 1.6]], rtol=1e-7)
    moved = three(z + torch.tensor([[0, 0, 7.0]])) - three(z)
    assert torch.equal(moved, torch.tensor([[0, 0, 7.0]], dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_p03_residual_at_the_published_size(big, dtype, limit):
    sem = big.to(dtype)
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1)).to(dtype)
    u = sem(x)
    assert (u - x - u @ sem.adjacency()).abs().max() < limit


def test_p03_solve_is_the_inverse(big):
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    by_inverse = x @ inverse(big)
    assert (big(x) - by_inverse).norm() / by_inverse.norm() < 1e-13


def test_p04_a_shift_moves_a_node_and_its_descendants(sparse_mask):
    torch.manual_seed(0)
    sem = DenseSEM(sparse_mask, init_sd=0.7).double()
    full = inverse(sem)
    reach = torch.linalg.matrix_power(torch.eye(40) + sparse_mask, 40) > 0
    assert 40 < reach.sum() < 400  # there are descendants, and nodes that are none
    z = torch.randn(1, 40, dtype=torch.float64)
    for j in range(40):
        shift = torch.zeros(1, 40, dtype=torch.float64)
        shift[0, j] = -1.3
        moved = (sem(z + shift) - sem(z))[0]
        np.testing.assert_allclose(moved.detach(), -1.3 * full[j], atol=1e-13)
        assert (moved[~reach[j]] == 0).all()
        assert moved[j].item() == pytest.approx(-1.3, rel=1e-14)


def test_p04_neumann_series_and_determinant(sparse_mask):
    torch.manual_seed(0)
    sem = DenseSEM(sparse_mask, init_sd=0.7).double()
    weight = sem.adjacency().detach()
    series = sum(torch.linalg.matrix_power(weight, k) for k in range(sem.n_nodes))
    np.testing.assert_allclose(series, sem(torch.eye(40, dtype=torch.float64)).detach(), atol=1e-13)
    assert torch.linalg.det(torch.eye(40, dtype=torch.float64) - weight).item() == pytest.approx(1, abs=1e-12)


def test_p05_linear_in_the_strength_and_additive_over_targets(big):
    z = torch.randn(3, 512, dtype=torch.float64)
    first, second = torch.softmax(torch.randn(2, 512, dtype=torch.float64), 1).unsqueeze(1)
    u0 = big(z)
    for strength in (-1.0, 0.5, 3.0):
        np.testing.assert_allclose(
            (big(z + strength * first) - u0).detach(), (strength * (big(z + first) - u0)).detach(), atol=1e-12
        )
    both = big(z + first + second) - u0
    np.testing.assert_allclose(both.detach(), (big(z + first) - u0 + big(z + second) - u0).detach(), atol=1e-12)


def test_p13_variance_along_the_order_at_the_start():
    """With z ~ N(0, I), the variance of node k is the squared norm of column k of the inverse, on average 1.01^k."""
    torch.manual_seed(0)
    mask, rows = torch.ones(512, 512).triu(1), torch.eye(512)
    with torch.no_grad():
        found = torch.stack([DenseSEM(mask)(rows).square().sum(0) for _ in range(100)]).double()
    assert (found[:, 0] == 1).all()
    for node, published in {127: 3.54, 255: 12.65, 511: 161.5}.items():
        assert 1.01**node == pytest.approx(published, rel=1e-3)
        error = found[:, node].std() / 10
        assert abs(found[:, node].mean() - published) < 4 * error
        assert error < 0.05 * published


# ---------------------------------------------------------------------- beyond


def test_scaled_start_keeps_the_last_node_in_bounds():
    torch.manual_seed(0)
    sem = DenseSEM(torch.ones(512, 512).triu(1), init_sd=None)
    variance = sem(torch.eye(512)).square().sum(0)
    assert variance.max() < 1.1


@pytest.mark.parametrize("mask", [torch.ones(3, 3), torch.eye(3), torch.ones(3, 3).tril(-1), torch.zeros(2, 3)])
def test_masks_that_are_no_order(mask):
    with pytest.raises(ValueError, match="strictly upper triangular"):
        DenseSEM(mask)


def test_the_mask_is_saved_with_the_weights():
    ours = DenseSEM(torch.from_numpy(random_dag_mask(20, 0.3, 0)))
    other = DenseSEM(torch.from_numpy(random_dag_mask(20, 0.3, 1)))
    other.load_state_dict(ours.state_dict())
    x = torch.randn(2, 20)
    assert torch.equal(ours(x), other(x))


def test_off_mask_weights_get_no_gradient(sparse_mask):
    sem = DenseSEM(sparse_mask)
    sem(torch.randn(5, 40)).square().sum().backward()
    assert (sem.weight.grad[sparse_mask == 0] == 0).all()
    assert (sem.weight.grad[sparse_mask == 1] != 0).all()


def test_sparse_and_dense_are_the_inverse(sparse_mask):
    torch.manual_seed(0)
    dense_sem = DenseSEM(sparse_mask, init_sd=0.7).double()
    edges = sparse_mask.nonzero().T
    order = torch.randperm(edges.shape[1])  # an edge list has no order
    # nor do its nodes stand in topological order
    place = torch.randperm(40)
    weight = dense_sem.weight.detach()[edges[0, order], edges[1, order]]
    sparse_sem = SparseSEM(place[edges[:, order]], 40, weight).double()
    x = torch.randn(5, 40, dtype=torch.float64)
    shuffled = torch.empty_like(x)
    shuffled[:, place] = x
    u = sparse_sem(shuffled)
    np.testing.assert_allclose(u[:, place].detach(), dense_sem(x).detach(), atol=1e-6)  # weights are stored in float32
    np.testing.assert_allclose(u.detach(), (shuffled @ inverse(sparse_sem)).detach(), atol=1e-12)
    u.square().sum().backward()
    dense_sem(x).square().sum().backward()
    by_edge = dense_sem.weight.grad[edges[0, order], edges[1, order]]
    np.testing.assert_allclose(sparse_sem.weight.grad, by_edge, rtol=1e-4, atol=1e-4)


def test_sparse_walks_the_longest_path_and_no_further():
    n = 30
    chain = torch.stack([torch.arange(n - 1), torch.arange(1, n)]).flip(1)
    sem = SparseSEM(chain, n, torch.full((n - 1,), 2.0))
    assert sem.depth == n - 1
    np.testing.assert_array_equal(sem(torch.eye(n)[:1]).detach()[0], 2.0 ** np.arange(n))
    assert SparseSEM(torch.tensor([[0, 0, 1], [1, 2, 2]]), 3).depth == 2


def test_sparse_starts_at_zero_and_takes_empty_graphs():
    x = torch.randn(2, 3)
    assert torch.equal(SparseSEM(torch.tensor([[0], [1]]), 3)(x), x)
    empty = SparseSEM(torch.zeros(2, 0, dtype=torch.int64), 3)
    assert empty.depth == 0
    assert torch.equal(empty(x), x)


def test_parallel_edges_add_up():
    sem = SparseSEM(torch.tensor([[0, 0], [1, 1]]), 2, torch.tensor([1.0, 2.0]))
    assert sem(torch.tensor([[1.0, 0.0]])).tolist() == [[1.0, 3.0]]
    assert sem.adjacency()[0, 1] == 3


@pytest.mark.parametrize("edges", [[[0, 1, 2], [1, 2, 0]], [[0, 1], [1, 0]], [[1], [1]], [[0, 1, 3, 2], [1, 2, 2, 3]]])
def test_sparse_refuses_cycles(edges):
    with pytest.raises(ValueError, match="cycle.*break_cycles"):
        SparseSEM(torch.tensor(edges), 5)
