"""Softmax over incoming edges, and the sparse product: against dense algebra, and the published toy."""

from __future__ import annotations

import pytest
import torch

from scvi_causal.nn._edges import Edges, edge_softmax, propagate, sort_edges

TOY = [(0, 1), (0, 2), (1, 2), (0, 0), (1, 1), (2, 2)]


def graph(edges, n=3):
    source, target = torch.tensor(edges).T
    return sort_edges(source, target, n, n)


def dense(values, edges):
    matrix = torch.zeros(edges.n_targets, edges.n_sources, dtype=values.dtype)
    matrix[edges.target, edges.source] = values
    return matrix


def toy_attention(edges):
    """All logits 1 but that of 1 -> 2, which is 0."""
    logits = torch.ones(len(edges))
    logits[(edges.source == 1) & (edges.target == 2)] = 0.0
    return edge_softmax(logits, edges)


def test_toy_attention_and_codes():
    edges, _ = graph(TOY)
    attention = toy_attention(edges)
    expected = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.42231880, 0.15536240, 0.42231880]])
    torch.testing.assert_close(dense(attention, edges), expected, atol=1e-6, rtol=0)
    features = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    codes = torch.tensor([[1, 0], [0.5, 0.5], [0.84463760, 0.57768120]])
    torch.testing.assert_close(propagate(attention, edges, features), codes, atol=1e-6, rtol=0)


def test_reversing_edges_changes_the_codes():
    edges, _ = graph(TOY)
    turned, _ = graph([(b, a) for a, b in TOY])
    features = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    forward, backward = (propagate(edge_softmax(torch.ones(6), e), e, features) for e in (edges, turned))
    assert (forward - backward).abs().max() > 0.1
    # 0 -> 1 with equal logits: 1 is half 0; turned round, 0 has heard of 1 and 2
    torch.testing.assert_close(forward[1], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(backward[0], torch.tensor([2 / 3, 2 / 3]))


def test_incoming_weights_sum_to_one():
    torch.manual_seed(3)
    edges, _ = graph([(a, b) for a in range(6) for b in range(6) if (a * b + a) % 3 == 0 or a == b], n=6)
    attention = edge_softmax(torch.randn(len(edges)), edges)
    torch.testing.assert_close(torch.zeros(6).index_add(0, edges.target, attention), torch.ones(6))
    equal = edge_softmax(torch.full((len(edges),), 2.5), edges)
    in_degree = torch.bincount(edges.target, minlength=6)
    torch.testing.assert_close(equal, 1 / in_degree[edges.target].float())


def test_large_logits_do_not_overflow():
    edges, _ = graph(TOY)
    attention = edge_softmax(torch.tensor([900.0, 900, 900, -900, 900, 900]), edges)
    assert attention.isfinite().all()


@pytest.mark.parametrize("width", [1, 5])
def test_gradients_of_the_sparse_product(width):
    place = torch.randperm(35)[:12]
    edges, order = sort_edges(place % 5, place // 5, 5, 7)
    assert (edges.target.diff() >= 0).all()
    torch.testing.assert_close(edges.source, (place % 5)[order])
    values = torch.randn(12, dtype=torch.double, requires_grad=True)
    x = torch.randn(5, width, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(propagate(values, edges, x), dense(values, edges) @ x)
    assert torch.autograd.gradcheck(lambda v, x: propagate(v, edges, x), (values, x))


def test_gradient_without_mkl_is_the_same(monkeypatch):
    edges, _ = sort_edges(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 2]), 3, 3)
    grads = []
    for available in (True, False):
        values = torch.arange(4.0, requires_grad=True)
        monkeypatch.setattr("scvi_causal.nn._edges._CHUNK", 4)
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda found=available: found)
        propagate(values, edges, torch.arange(6.0).view(3, 2)).square().sum().backward()
        grads.append(values.grad)
    torch.testing.assert_close(*grads)


def test_no_edges():
    none = torch.zeros(0, dtype=torch.int64)
    edges = Edges(none, none, 2, 3)
    values = torch.zeros(0, requires_grad=True)
    out = propagate(values, edges, torch.ones(2, 4))
    assert out.shape == (3, 4)
    assert not out.any()
    out.sum().backward()
    assert values.grad.shape == (0,)


def test_mixed_precision_leaves_the_sparse_product_whole():
    edges, _ = graph(TOY)
    values, x = torch.rand(6, requires_grad=True), torch.randn(3, 2)
    expected = propagate(values, edges, (x @ torch.eye(2)).bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = propagate(values, edges, x @ torch.eye(2))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert values.grad.isfinite().all()
