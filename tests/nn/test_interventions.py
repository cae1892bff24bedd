"""Closed forms of interventions on a linear model: P1, P3, P4, P7, P8 of the specification."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from scvi_causal.nn import hard_mean, hard_moments, log_marginal, responsibility, shift_moments


def double(values):
    return torch.tensor(values, dtype=torch.float64)


WEIGHT = double([[0, 2, 0], [0, 0, -1], [0, 0, 0]])
INTERCEPT, NOISE = double([1, 0, 0]), double([1, 0.5, 2])
NOTHING, MIDDLE = torch.zeros(3, dtype=torch.float64), double([0, 1, 0])
OBSERVED = double([[1, 2, -2], [2, 4.25, -4.25], [-2, -4.25, 8.25]])


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_p01_observational_and_shift():
    mean, covariance = shift_moments(WEIGHT, INTERCEPT, NOISE, NOTHING, NOTHING)
    close(mean, double([1, 2, -2]))
    close(covariance, OBSERVED)
    mean, covariance = shift_moments(WEIGHT, INTERCEPT, NOISE, MIDDLE, double([9, 3, 9]))
    close(mean, double([1, 5, -5]))
    close(covariance, OBSERVED)


def test_p01_hard_cuts_the_parent():
    mean, covariance = hard_moments(WEIGHT, INTERCEPT, NOISE, MIDDLE, double([9, 3, 9]), double([9, 0.5, 9]))
    close(mean, double([1, 3, -3]))
    close(covariance, double([[1, 0, 0], [0, 0.25, -0.25], [0, -0.25, 4.25]]))
    untouched = hard_moments(WEIGHT, INTERCEPT, NOISE, NOTHING, NOTHING, NOISE)
    close(untouched[1], OBSERVED)


def random_dag(d, generator):
    return torch.randn(d, d, generator=generator, dtype=torch.float64).triu(1)


def test_uncertain_targets_are_the_mixture_over_all_sets():
    generator = torch.Generator().manual_seed(0)
    d = 4
    weight = random_dag(d, generator)
    b, size = (torch.randn(d, generator=generator, dtype=torch.float64) for _ in range(2))
    sd, probability = (torch.rand(d, generator=generator, dtype=torch.float64) for _ in range(2))
    chances, shifted, hard = [], [], []
    for hit in itertools.product([0.0, 1.0], repeat=d):
        hit = double(hit)
        chances.append(torch.where(hit > 0, probability, 1 - probability).prod())
        shifted.append(shift_moments(weight, b, sd, hit, size))
        hard.append(hard_moments(weight, b, sd, hit, size, sd)[0])
    chance = torch.stack(chances)
    means, covariances = torch.stack([m for m, _ in shifted]), torch.stack([c for _, c in shifted])
    mean, covariance = shift_moments(weight, b, sd, probability, size)
    close(mean, chance @ means)
    spread = torch.einsum("k,ki,kj->ij", chance, means - mean, means - mean)
    close(covariance, torch.einsum("k,kij->ij", chance, covariances) + spread)
    close(hard_mean(weight, b, probability, size), chance @ torch.stack(hard))


def test_many_interventions_at_once():
    generator = torch.Generator().manual_seed(1)
    weight = random_dag(5, generator)
    b, sd = torch.randn(5, generator=generator, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    probability = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    size = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    mean, covariance = shift_moments(weight, b, sd, probability, size)
    assert mean.shape == (2, 3, 5)
    assert covariance.shape == (2, 3, 5, 5)
    one = shift_moments(weight, b, sd, probability[1, 2], size[1, 2])
    close(mean[1, 2], one[0])
    close(covariance[1, 2], one[1])
    close(hard_mean(weight, b, probability, size)[1, 2], hard_mean(weight, b, probability[1, 2], size[1, 2]))


# ---------------------------------------------------------------------- unknown targets


@pytest.fixture
def problem():
    """Logits and log likelihoods of five nodes."""
    rng = np.random.default_rng(3)
    return tuple(torch.from_numpy(rng.normal(scale=s, size=5)) for s in (1.0, 8.0, 8.0))


def joint(problem, hit, sparsity=0.0):
    """Log of probability and likelihood of one set of targets."""
    logit, off, on = problem
    prior = torch.where(hit > 0, torch.sigmoid(logit), torch.sigmoid(-logit)).log()
    return (prior + torch.where(hit > 0, on - sparsity, off)).sum()


@pytest.mark.parametrize("sparsity", [0.0, 2.0])
def test_p03_node_wise_sum_equals_brute_force(problem, sparsity):
    sets = [double(hit) for hit in itertools.product([0.0, 1.0], repeat=5)]
    brute = torch.logsumexp(torch.stack([joint(problem, hit, sparsity) for hit in sets]), 0)
    close(log_marginal(*problem, sparsity).sum(), brute)


def test_p03_monte_carlo_and_the_jensen_bound_are_below(problem):
    logit, off, on = problem
    exact = float(log_marginal(*problem).sum())
    jensen = float((torch.sigmoid(logit) * on + torch.sigmoid(-logit) * off).sum())
    assert jensen < exact
    rng = np.random.default_rng(0)

    def estimate(n_samples):
        hit = rng.random((2000, n_samples, 5)) < torch.sigmoid(logit).numpy()
        value = np.where(hit, on.numpy(), off.numpy()).sum(-1)
        return np.logaddexp.reduce(value, axis=1) - math.log(n_samples)

    bias = [estimate(n).mean() - exact for n in (1, 4, 16, 64)]
    assert all(b < 0 for b in bias)
    assert bias == sorted(bias)
    spread = [estimate(n).std() for n in (4, 64)]
    assert spread[1] < spread[0]


def test_p04_a_price_outside_bounds_the_probability_and_inside_does_not():
    p = np.linspace(1e-4, 1 - 1e-4, 9999)
    logit = torch.from_numpy(np.log(p / (1 - p)))
    off, on = torch.zeros(len(p), dtype=torch.float64), torch.full((len(p),), 50.0, dtype=torch.float64)
    for price in (1.0, 2.0, 4.0, 10.0):
        outside = log_marginal(logit, off, on).numpy() - price * p
        assert p[outside.argmax()] == pytest.approx(1 / price, abs=2e-3)
        assert log_marginal(logit, off, on, price).numpy().argmax() == len(p) - 1


def test_p07_log_determinant_vanishes_for_a_dag():
    generator = torch.Generator().manual_seed(2)
    eye = torch.eye(6, dtype=torch.float64)
    assert abs(float(torch.linalg.slogdet(eye - random_dag(6, generator)).logabsdet)) < 1e-12
    pair = double([[0, 0.5], [0.5, 0]])
    assert float(torch.linalg.slogdet(eye[:2, :2] - pair).logabsdet) == pytest.approx(math.log(0.75))


def test_p08_gradient_is_posterior_minus_prior(problem):
    logit, off, on = problem
    logit = logit.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_marginal(logit, off, on, 2.0).sum(), logit)
    logit = logit.detach()
    close(gradient, responsibility(logit, off, on, 2.0) - torch.sigmoid(logit))


def test_large_evidence_neither_overflows_nor_vanishes():
    logit, big = torch.zeros(2), torch.tensor([1e5, -1e5])
    value = log_marginal(logit, torch.zeros(2), big)
    assert torch.isfinite(value).all()
    assert responsibility(logit, torch.zeros(2), big).tolist() == [1.0, 0.0]
