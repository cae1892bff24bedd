"""Closed forms of the losses, P7 and P8 of the checks against the publication."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scvi_causal.nn import gaussian_mmd, kl_standard_normal

BANDWIDTHS = 31.25 * 2.0 ** torch.arange(10, dtype=torch.float64)
"""Of the published training kernel: 31.25 to 16,000."""


def pairwise_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The definition, with every pair of cells spelled out."""

    def kernel(a, b):
        squared = ((a[:, None] - b[None]) ** 2).sum(-1)
        return sum(np.exp(-squared / float(h)) for h in BANDWIDTHS).mean()

    return kernel(x, x) + kernel(y, y) - 2 * kernel(x, y)


def test_p07_kl():
    kl = lambda mean, variance: float(kl_standard_normal(*torch.tensor([mean, variance], dtype=torch.float64)))
    assert kl(0.0, 1.0) == 0
    assert kl(1.0, 1.0) == 0.5
    assert kl(0.0, 1 + 1e-4) == pytest.approx(2.5e-9, rel=1e-3)
    per_node = kl_standard_normal(torch.ones(3, 512), torch.ones(3, 512))
    assert (per_node.mean(1) == 0.5).all()


def test_p07_kl_is_that_of_torch():
    mean, variance = torch.randn(5, 4), torch.rand(5, 4) + 0.1
    found = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
    )
    np.testing.assert_allclose(kl_standard_normal(mean, variance), found, rtol=1e-5, atol=1e-6)


def test_p08_identical_batches():
    x = torch.randn(32, 50, dtype=torch.float64)
    assert gaussian_mmd(x, x, BANDWIDTHS) == pytest.approx(0, abs=1e-12)


def test_p08_one_pair_at_squared_distance_1000():
    x = torch.zeros(1, 10, dtype=torch.float64)
    y = torch.full((1, 10), 10.0, dtype=torch.float64)
    assert sum(math.exp(-1000 / float(h)) for h in BANDWIDTHS) == pytest.approx(3.7291073466, abs=5e-11)
    assert float(gaussian_mmd(x, y, BANDWIDTHS)) == pytest.approx(12.5417853067, abs=5e-11)


@pytest.mark.parametrize("n", [1, 4, 32])
def test_p08_infinite_separation(n):
    far = 1e6 * torch.eye(2 * n, dtype=torch.float64)
    assert float(gaussian_mmd(far[:n], far[n:], BANDWIDTHS)) == pytest.approx(20 / n, rel=1e-12)


def test_p08_symmetric_and_equal_to_the_pairwise_form():
    rng = np.random.default_rng(0)
    x, y = 6 * rng.normal(size=(8, 30)), 6 * rng.normal(size=(5, 30)) + 3  # numbers of cells may differ
    found = float(gaussian_mmd(torch.tensor(x), torch.tensor(y), BANDWIDTHS))
    assert found == pytest.approx(pairwise_mmd(x, y), rel=1e-12)
    assert found == pytest.approx(float(gaussian_mmd(torch.tensor(y), torch.tensor(x), BANDWIDTHS)), rel=1e-12)
    assert found > 0.1


def test_p08_single_precision_far_from_the_origin():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 32, 100))
    exact = pairwise_mmd(x, y + 0.5)
    shifted = [torch.tensor(a + 1000, dtype=torch.float32) for a in (x, y + 0.5)]
    assert float(gaussian_mmd(*shifted, BANDWIDTHS.float())) == pytest.approx(exact, rel=1e-2)


def test_mmd_of_groups():
    x, y = torch.randn(2, 3, 6, 4, dtype=torch.float64) * 5
    found = gaussian_mmd(x, y, BANDWIDTHS)
    assert found.shape == (3,)
    np.testing.assert_allclose(found, [gaussian_mmd(a, b, BANDWIDTHS) for a, b in zip(x, y, strict=True)], rtol=1e-12)


def test_mmd_gradient():
    x = (4 * torch.randn(4, 3, dtype=torch.float64)).requires_grad_()
    y = (4 * torch.randn(4, 3, dtype=torch.float64) + 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: gaussian_mmd(a, b, BANDWIDTHS), (x, y))
