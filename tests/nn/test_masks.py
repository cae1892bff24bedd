"""Straight-through masks against closed forms (parity checks 1, 5, 6, 7 of the family)."""

from __future__ import annotations

import pytest
import torch

from scvi_causal.nn import kl_bernoulli, straight_through_bernoulli
from scvi_causal.nn._masks import log_bernoulli, log_normal


@pytest.mark.parametrize(
    ("prior", "expected"), [(0.1, 0.510826), (0.01, 1.614463), (0.001, 2.761231), (0.3, 0.087177)], ids=str
)
def test_kl_of_even_odds(prior, expected):
    assert float(kl_bernoulli(torch.zeros(()), prior)) == pytest.approx(expected, abs=1e-5)


def test_kl_is_that_of_torch_and_zero_at_the_prior():
    logits = torch.tensor([-8.0, -2.0, 0.0, 1.5, 9.0])
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(bernoulli(logits=logits), bernoulli(probs=torch.tensor(0.2)))
    torch.testing.assert_close(kl_bernoulli(logits, 0.2), expected, atol=1e-5, rtol=1e-5)
    assert float(kl_bernoulli(torch.logit(torch.tensor(0.2)), 0.2)) == pytest.approx(0.0, abs=1e-6)


def test_draws_are_zeros_and_ones_with_the_right_mean():
    uniform = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([-2.0, 0.0, 1.0])
    draw = straight_through_bernoulli(logits, uniform)
    assert set(draw.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(draw.mean(0), torch.sigmoid(logits), atol=0.01, rtol=0)


@pytest.mark.parametrize("gradient", ["mean", "relaxed"])
def test_extreme_numbers_stay_finite(gradient):
    logits = torch.tensor([-100.0, 0.0, 100.0], requires_grad=True)
    for u in (0.0, 1.0 - 1e-9):
        draw = straight_through_bernoulli(logits, torch.full((3,), u), gradient)
        draw.sum().backward()
        assert torch.isfinite(logits.grad).all()
    assert straight_through_bernoulli(torch.tensor([20.0]), torch.tensor([1e-4])).item() == 1.0


@pytest.mark.parametrize(
    ("logit", "relaxed", "true"),
    [(0.0, 1 / 6, 0.25), (2.0, 0.11334, 0.10499), (-2.0, 0.11334, 0.10499), (-4.595, 0.0277, 0.0099)],
)
def test_gradient_of_a_sum(logit, relaxed, true):
    """The published estimator is biased; that through the mean is right for a linear function."""
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {}
    for gradient in ("relaxed", "mean"):
        logits = torch.full((), logit, dtype=torch.float64, requires_grad=True)
        straight_through_bernoulli(logits, uniform, gradient).mean().backward()
        found[gradient] = float(logits.grad)
    assert found["relaxed"] == pytest.approx(relaxed, rel=0.02)
    assert found["mean"] == pytest.approx(true, rel=0.01)


def test_log_densities():
    draw, logits = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.3, -1.0, 20.0])
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(draw)
    torch.testing.assert_close(log_bernoulli(draw, logits), expected)
    x = torch.tensor([0.2, -1.0])
    difference = log_normal(x, 0.5, 2.0) - log_normal(x, 0.0, 1.0)
    normal = torch.distributions.Normal
    torch.testing.assert_close(difference, normal(0.5, 2.0).log_prob(x) - normal(0.0, 1.0).log_prob(x))
