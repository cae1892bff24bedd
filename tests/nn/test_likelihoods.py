from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scvi.distributions import NegativeBinomial

from scvi_causal.nn import AbductedCounts, nb_log_likelihood

N = 60_000


@pytest.fixture
def counts():
    """Mean, inverse dispersion and draws, mostly zeros."""
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.rand(40, 30, generator=generator, dtype=torch.float64).square() + 1e-4
    theta = 4 * torch.rand(30, generator=generator, dtype=torch.float64) + 0.2
    torch.manual_seed(0)
    x = torch.poisson(mean * torch._standard_gamma(theta.expand(40, 30)) / theta)
    x[3] = 0  # a cell without a single count
    return x, mean, theta


def test_likelihood_is_that_of_scvi_and_of_torch(counts):
    x, mean, theta = counts
    assert 0.3 < (x == 0).double().mean() < 0.95
    found = nb_log_likelihood(x, mean, theta)
    assert found.shape == (40,)
    by_scvi = NegativeBinomial(mu=mean, theta=theta.expand_as(mean)).log_prob(x).sum(1)
    by_torch = torch.distributions.NegativeBinomial(theta, logits=mean.log() - theta.log()).log_prob(x).sum(1)
    np.testing.assert_allclose(found, by_scvi, rtol=1e-4)
    np.testing.assert_allclose(found, by_torch, rtol=1e-10)


def test_likelihood_has_the_same_gradient(counts):
    x, mean, theta = counts
    gradients = []
    for function in (
        nb_log_likelihood,
        lambda x, m, t: torch.distributions.NegativeBinomial(t, logits=m.log() - t.log()).log_prob(x).sum(1),
    ):
        m, t = mean.clone().requires_grad_(), theta.clone().requires_grad_()
        function(x, m, t).sum().backward()
        gradients.append((m.grad, t.grad))
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)


def test_likelihood_in_single_precision(counts):
    x, mean, theta = counts
    found = nb_log_likelihood(x.float(), mean.float(), theta.float())
    np.testing.assert_allclose(found, nb_log_likelihood(x, mean, theta), rtol=1e-4)


# ---------------------------------------------------------------------- counts of the very same cells


@pytest.fixture
def sources():
    """Counts that follow the source, for targets that fall, stay, rise, vanish and start from almost nothing."""
    theta = torch.tensor([0.5, 2.0, 10.0, 3.0, 1.0])
    source = torch.tensor([4.0, 3.0, 1.5, 2.0, 0.05])
    target = torch.tensor([1.0, 3.0, 6.0, 1e-4, 2.0])
    torch.manual_seed(0)
    x = torch.poisson(source * torch._standard_gamma(theta.expand(N, 5)) / theta)
    return AbductedCounts(x, source.expand(N, 5), target.expand(N, 5), theta)


def test_a_target_that_changes_nothing_changes_nothing(counts):
    x, mean, theta = counts
    same = AbductedCounts(x, mean, mean, theta)
    assert torch.equal(same.mean, x)
    assert torch.equal(same.sample(), x)


def test_draws_are_whole_numbers_and_monotone(sources):
    drawn = sources.sample()
    assert torch.equal(drawn, drawn.round())
    assert (drawn >= 0).all()
    falls = sources.target_mean < sources.source_mean
    assert (drawn <= sources.counts)[falls].all()
    assert (drawn >= sources.counts)[~falls].all()
    assert torch.equal(drawn[:, 1], sources.counts[:, 1])


def test_draws_follow_the_target_exactly(sources):
    """If the counts are NB(source mean, theta), the draws are NB(target mean, theta): mean, variance, and all of it."""
    drawn = sources.sample().numpy()
    for gene, (mu, theta) in enumerate(
        zip(sources.target_mean[0].tolist(), sources.inverse_dispersion.tolist(), strict=True)
    ):
        law = stats.nbinom(theta, theta / (theta + mu))
        variance, kurtosis = law.stats("vk")
        assert variance == pytest.approx(mu + mu**2 / theta)
        x = drawn[:, gene]
        assert abs(x.mean() - mu) < 4 * np.sqrt(variance / N)
        assert abs(x.var() - variance) < 4 * variance * np.sqrt((kurtosis + 2) / N)
        grid = np.arange(60)
        empirical = np.searchsorted(np.sort(x), grid, side="right") / N
        assert np.abs(empirical - law.cdf(grid)).max() < 1.95 / np.sqrt(N)  # Kolmogorov's bound at p = 0.001


def test_mean_is_that_of_the_draws(sources):
    """Of a given cell, not only of the population."""
    cells = torch.tensor([[0.0, 2.0, 1.0, 5.0, 0.0], [9.0, 1.0, 6.0, 0.0, 1.0]])
    few = AbductedCounts(cells, sources.source_mean[:2], sources.target_mean[:2], sources.inverse_dispersion)
    drawn = torch.stack([few.sample() for _ in range(4000)])
    # at least that of one count in all draws, which the gene that nearly vanishes may never show
    error = drawn.std(0).clamp_min(1 / np.sqrt(4000)) / np.sqrt(4000)
    assert ((drawn.mean(0) - few.mean).abs() < 4 * error).all()


def test_mean_over_the_population_is_the_target(sources):
    error = sources.mean.std(0) / np.sqrt(N)
    assert ((sources.mean.mean(0) - sources.target_mean[0]).abs() < 4 * error + 1e-6).all()


def test_a_cell_keeps_its_noise(sources):
    """A cell that had more counts than expected has more under the target, too."""
    rising = 2
    x, drawn = sources.counts[:, rising], sources.sample()[:, rising]
    assert np.corrcoef(x, drawn)[0, 1] > 0.3


def test_draws_come_from_the_global_generator(sources):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = sources.sample()
        torch.manual_seed(3)
        assert torch.equal(first, sources.sample())
        assert not torch.equal(first, sources.sample())


@pytest.mark.parametrize("theta", [0.3, 1.5, 5.0])
def test_expected_log1p_is_that_of_draws(theta):
    counts = torch.tensor([[0.0, 0.0, 1.0, 2.0, 5.0, 3.0, 8.0, 1.0, 0.0]])
    before = torch.tensor([[0.3, 0.2, 0.8, 2.0, 4.0, 3.0, 6.0, 2.0, 0.5]])
    after = torch.tensor([[0.9, 6.0, 1.6, 5.0, 4.0, 0.5, 3.0, 0.1, 0.2]])
    inverse_dispersion, per_count = torch.full((9,), theta), torch.tensor([[6.0]])
    found = AbductedCounts(counts, before, after, inverse_dispersion).expected_log1p(per_count)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = AbductedCounts(counts.expand(50_000, 9), before, after, inverse_dispersion).sample()
    torch.testing.assert_close(found[0], torch.log1p(6.0 * draws).mean(0), rtol=0.03, atol=0.01)
    # what does not change is what it was, and what cannot change is nothing
    same = AbductedCounts(counts, before, before, inverse_dispersion).expected_log1p(per_count)
    torch.testing.assert_close(same, torch.log1p(6.0 * counts), rtol=1e-4, atol=1e-4)
    assert found[0, 8] == 0


def test_expected_log1p_has_a_gradient_everywhere():
    counts = torch.tensor([[0.0, 0.0, 3.0, 3.0, 3.0]])
    before = torch.tensor([[0.5, 1e-4, 2.0, 2.0, 2.0]])
    after = torch.tensor([[0.5, 1e-4, 2.0, 1e-4, 500.0]]).requires_grad_()
    AbductedCounts(counts, before, after, torch.ones(5)).expected_log1p(torch.ones(1, 1)).sum().backward()
    assert torch.isfinite(after.grad).all()


def test_likelihood_in_mixed_precision():
    """A matrix product would be in half precision there, and a sum over genes would lose its digits."""
    torch.manual_seed(0)
    mean, theta = torch.rand(3, 50) + 0.5, torch.rand(50) + 0.5
    counts = torch.poisson(mean)
    expected = nb_log_likelihood(counts, mean, theta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(nb_log_likelihood(counts, mean, theta), expected)
