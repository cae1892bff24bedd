"""Populations of counts as rates, and cells that follow a change of rate, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import poisson

from scvi_causal.model.gim._rates import PSEUDO_RATE, MovedCounts, RateSums, change_rate


class NoSizeFactor:
    data_registry = ()


def summed(counts: np.ndarray, group: np.ndarray, is_control: np.ndarray, n_pieces: int = 3):
    """Rates from sums over pieces, and the log expression that the pieces gave back."""
    rows = np.arange(len(counts))
    sums = RateSums(NoSizeFactor(), rows, group, is_control, counts.shape[1])
    parts = [slice(p[0], p[-1] + 1) for p in np.array_split(rows, n_pieces)]
    log = [sums.add(part, csr_matrix(counts[part].astype(float))).toarray() for part in parts]
    return sums.finish(), np.concatenate(log)


def test_rates_are_means_of_normalised_counts():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.uniform(0.1, 5, size=(60, 7)))
    counts[:, 0] += 1
    group = np.repeat([0, 1, 2], 20)
    found, log = summed(counts, group, np.array([True, False, False]))
    rate = counts / counts.sum(1, keepdims=True) * 1e4
    np.testing.assert_allclose(found.mean, [rate[group == g].mean(0) for g in range(3)])
    np.testing.assert_allclose(log, np.log1p(rate))
    np.testing.assert_allclose(found.log, np.log(found.mean + PSEUDO_RATE))


@pytest.mark.parametrize("dispersion", [0.5, 2.0])
def test_dispersion_is_that_of_the_counts_within_groups(dispersion):
    """Two groups of controls with other rates, whose difference is no dispersion; libraries of 10,000 so that rates are counts."""
    rng = np.random.default_rng(1)
    mean = np.repeat([[4.0, 20.0]], 4_000, axis=0)
    mean[2_000:] *= 3
    counts = rng.poisson(mean * rng.gamma(dispersion, 1 / dispersion, size=mean.shape))
    counts = np.column_stack([counts, 10_000 - counts.sum(1)])
    found, _ = summed(counts, np.repeat([0, 1], 2_000), np.array([True, True]))
    np.testing.assert_allclose(found.dispersion[:2], dispersion, rtol=0.15)


def test_slope_is_how_the_log_rate_moves_with_the_mean_log():
    """For Poisson counts the mean of log(1 + rate) is a sum, whose derivative in the log rate is taken numerically."""
    rng = np.random.default_rng(2)
    rate, n = np.array([0.5, 6.0]), 40_000
    counts = rng.poisson(rate, size=(n, 2))
    counts = np.column_stack([counts, 10_000 - counts.sum(1)])
    found, _ = summed(counts, np.zeros(n, dtype=int), np.array([True]))
    grid = np.arange(60)[:, None]
    mean_log = lambda r: (poisson.pmf(grid, r) * np.log1p(grid)).sum(0)
    step = 1e-4
    moved = (mean_log(rate * np.exp(step)) - mean_log(rate * np.exp(-step))) / (2 * step)
    np.testing.assert_allclose(found.slope[:2], rate / (rate + PSEUDO_RATE) / moved, rtol=0.03)


def test_a_silent_gene_has_finite_numbers():
    counts = np.column_stack([np.full(10, 5), np.zeros(10, dtype=int)])
    found, _ = summed(counts, np.zeros(10, dtype=int), np.array([True]))
    for values in (found.mean, found.dispersion, found.slope, found.log):
        assert np.isfinite(values).all()


def test_change_of_rate_is_a_fold_and_never_negative():
    rate = torch.tensor([0.0, 1.0, 10.0])
    torch.testing.assert_close(change_rate(rate, torch.zeros(3)), rate)
    doubled = change_rate(rate, torch.full((3,), np.log(2)))
    torch.testing.assert_close(doubled + PSEUDO_RATE, 2 * (rate + PSEUDO_RATE))
    assert (change_rate(rate, torch.full((3,), -50.0)) == 0).all()
    assert torch.isfinite(change_rate(rate, torch.full((3,), 1e4))).all()


def cells(rate: float, n: int, library: float = 4_000.0, dispersion: float | None = None):
    rng = np.random.default_rng(3)
    depth = library / 1e4
    own = rate if dispersion is None else rate * rng.gamma(dispersion, 1 / dispersion, size=(n, 1))
    return torch.tensor(rng.poisson(own * depth, size=(n, 1)), dtype=torch.float32), torch.full((n, 1), library)


@pytest.mark.parametrize("fold", [0.25, 0.8, 3.0])
def test_moved_poisson_counts_are_poisson_counts_of_the_new_rate(fold):
    """A large dispersion parameter says that cells differ by chance only."""
    counts, library = cells(8.0, 20_000)
    log_fold = torch.log(torch.tensor((8.0 * fold + PSEUDO_RATE) / (8.0 + PSEUDO_RATE))).reshape(1, 1)
    moved = MovedCounts(counts, library, torch.full_like(counts, 8.0), log_fold, torch.tensor([1e6]))
    drawn = moved.sample()
    torch.testing.assert_close(drawn, drawn.round(), rtol=0, atol=0)
    expected = 8.0 * fold * 0.4
    assert float(drawn.mean()) == pytest.approx(expected, rel=0.02)
    assert float(drawn.var()) == pytest.approx(expected, rel=0.05)
    zeros = float((drawn == 0).float().mean())
    assert zeros == pytest.approx(np.exp(-expected), abs=0.01)
    assert float(moved.mean.mean()) == pytest.approx(expected, rel=0.02)


def test_cells_that_differ_gain_in_proportion():
    """Under a gamma distribution of rates a rise keeps the dispersion: means add up and cells with more gain more."""
    counts, library = cells(8.0, 40_000, dispersion=1.0)
    log_fold = torch.log(torch.tensor((16.0 + PSEUDO_RATE) / (8.0 + PSEUDO_RATE))).reshape(1, 1)
    moved = MovedCounts(counts, library, torch.full_like(counts, 8.0), log_fold, torch.tensor([1.0]))
    drawn = moved.sample()
    assert float(drawn.mean()) == pytest.approx(6.4, rel=0.03)
    assert float(drawn.var()) == pytest.approx(6.4 + 6.4**2, rel=0.06)  # negative binomial, as before
    assert float((drawn == 0).float().mean()) == pytest.approx(1 / 7.4, abs=0.01)
    gained = moved.mean - counts
    assert float(gained[counts == 0].mean()) < float(gained[counts > 5].mean()) / 3


def test_nothing_changes_where_nothing_changes():
    counts, library = cells(2.0, 50)
    rate = torch.rand(50, 1, generator=torch.Generator().manual_seed(0)) * 9
    moved = MovedCounts(counts, library, rate, torch.zeros(1, 1), torch.tensor([1.0]))
    torch.testing.assert_close(moved.sample(), counts, rtol=0, atol=0)
    torch.testing.assert_close(moved.mean, counts, rtol=0, atol=0)


def test_a_gene_that_is_silent_can_rise():
    counts = torch.zeros(2_000, 1)
    log_fold = torch.log(torch.tensor((5.0 + PSEUDO_RATE) / PSEUDO_RATE)).reshape(1, 1)
    moved = MovedCounts(counts, torch.full_like(counts, 1e4), torch.zeros_like(counts), log_fold, torch.tensor([1.0]))
    assert float(moved.sample().mean()) == pytest.approx(5.0, rel=0.05)
