"""The graph convolution and the decoders of graphVCI, against direct formulas."""

from __future__ import annotations

import math

import pytest
import torch

from scvi_causal.nn._grn_encoder import AttentionHead, DotHead, GRNEncoder, factorised_attention, with_self_loops

EDGES = torch.tensor([[0, 0, 1], [1, 2, 2]])


def direct_attention(h, u, v):
    return (h[:, None] * torch.softmax(u[:, None] + v[None], 2)).sum(2)


# ---------------------------------------------------------------------- encoder


def test_encoder_is_the_published_layer():
    encoder = GRNEncoder(EDGES, 3, n_features=4, n_hidden=5)
    encoder.bias.data.normal_()
    mean = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])  # logits start at 1: plain means
    expected = torch.relu(mean @ encoder.features @ encoder.weight + encoder.bias)
    torch.testing.assert_close(encoder(), expected)


def test_published_start():
    encoder = GRNEncoder(EDGES, 500, n_features=128, n_hidden=128)
    limit = math.sqrt(6 / 256)
    assert encoder.features.abs().max() <= 1 / 256
    assert encoder.features.detach().std().item() == pytest.approx(1 / 256 / math.sqrt(3), rel=0.02)
    assert 0.95 * limit < encoder.weight.abs().max() <= limit
    assert not encoder.bias.any()
    assert (encoder.logits == 1).all()


def test_genes_without_edges_code_themselves():
    encoder = GRNEncoder(torch.zeros((2, 0), dtype=torch.int64), 4, n_features=3, n_hidden=2)
    torch.testing.assert_close(encoder(), torch.relu(encoder.features @ encoder.weight))
    torch.testing.assert_close(encoder.attention(), torch.ones(4))


def test_self_loops_are_added_once():
    once = with_self_loops(EDGES, 3)
    twice = with_self_loops(torch.stack(once), 3)
    torch.testing.assert_close(once, twice)
    doubled = with_self_loops(torch.cat([EDGES, EDGES], 1), 3)
    torch.testing.assert_close(once, doubled)


def test_every_parameter_learns():
    encoder = GRNEncoder(EDGES, 3, n_features=4, n_hidden=5, feature_scale=1.0)
    encoder().square().sum().backward()
    for name in ("features", "weight", "bias", "logits"):
        assert getattr(encoder, name).grad.abs().sum() > 0, name


def test_other_edges_can_be_set():
    encoder = GRNEncoder(EDGES, 3, n_features=4, n_hidden=5, feature_scale=1.0)
    encoder()
    encoder.set_edges(EDGES[:, :1])
    assert len(encoder.logits) == 4
    expected = GRNEncoder(EDGES[:, :1], 3, n_features=4, n_hidden=5)
    expected.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(encoder(), expected())


# ---------------------------------------------------------------------- heads


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_dot_head(n_outputs):
    head, codes, h = DotHead(4, 3, n_outputs), torch.randn(6, 3), torch.randn(5, 4)
    out = head(h, head.basis(codes))
    weight, bias = head.key.weight.view(4, n_outputs, 3), head.key.bias.view(4, n_outputs)
    for m in range(n_outputs):
        torch.testing.assert_close(out[m], h @ (codes @ weight[:, m].T + bias[:, m]).T)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_attention_head_is_the_softmax_of_the_joint_linear_layer(n_outputs):
    head, codes, h = AttentionHead(4, 3, n_outputs), torch.randn(6, 3), torch.randn(5, 4)
    out = head(h, head.basis(codes))
    joint = torch.cat([h[:, None].expand(-1, 6, -1), codes[None].expand(5, -1, -1)], 2)
    weight = torch.cat([head.query.weight, head.key.weight], 1)
    scores = (joint @ weight.T + head.key.bias).unflatten(2, (4, n_outputs))
    for m in range(n_outputs):
        expected = (h[:, None] * scores[..., m].softmax(2)).sum(2)
        torch.testing.assert_close(out[m], expected)
        assert (out[m] >= h.amin(1, keepdim=True) - 1e-6).all()
        assert (out[m] <= h.amax(1, keepdim=True) + 1e-6).all()


def test_without_softmax_attention_is_the_dot_form_and_a_constant_of_the_cell():
    """What became of it when the softmax was left out: no longer specific to a gene."""
    head, codes, h = AttentionHead(4, 3), torch.randn(6, 3), torch.randn(5, 4)
    basis = head.basis(codes)[0]
    unnormalised = (h[:, None] * (head.query(h)[:, None] + basis[None])).sum(2)
    constant = (h * head.query(h)).sum(1, keepdim=True)
    torch.testing.assert_close(unnormalised, h @ basis.T + constant)


def test_factorised_attention_is_the_direct_softmax():
    h, u, v = torch.randn(7, 16), 3 * torch.randn(7, 16), 3 * torch.randn(9, 16)
    torch.testing.assert_close(factorised_attention(h, u, v), direct_attention(h, u, v), atol=2e-6, rtol=1e-5)


def test_a_constant_over_features_changes_nothing():
    h, u, v = torch.randn(7, 16), torch.randn(7, 16), torch.randn(9, 16)
    shifted = factorised_attention(h, u + 40.0, v - torch.arange(9.0)[:, None])
    torch.testing.assert_close(shifted, factorised_attention(h, u, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [90.0, 1000.0])
def test_underflow_falls_back_to_the_direct_softmax(scale):
    """Where cell and gene look at other features, e^u e^v is nothing but zeros."""
    h = torch.randn(3, 4)
    u = torch.zeros(3, 4) - scale
    u[:, 0] = 0.0
    v = torch.zeros(5, 4) - scale
    v[:3, 1] = 0.0
    v[3:] = 0.1 * torch.randn(2, 4)  # genes that are not at risk
    found = factorised_attention(h, u, v)
    torch.testing.assert_close(found, direct_attention(h, u, v), atol=1e-6, rtol=1e-5)
    u.requires_grad_()
    factorised_attention(h, u, v).sum().backward()
    assert u.grad.isfinite().all()


def test_gradients_of_factorised_attention():
    tensors = [torch.randn(n, 3, dtype=torch.double, requires_grad=True) for n in (4, 4, 5)]
    assert torch.autograd.gradcheck(factorised_attention, tensors)


def test_nothing_of_the_size_cells_by_genes_by_features_is_made():
    n_cells, n_genes, n_hidden = 13, 17, 19
    head = AttentionHead(n_hidden, 5, 2)
    sizes = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        out = head(torch.randn(n_cells, n_hidden), head.basis(torch.randn(n_genes, 5)))
        sum(o.sum() for o in out).backward()
    assert max(sizes) < n_cells * n_genes * n_hidden / 5
