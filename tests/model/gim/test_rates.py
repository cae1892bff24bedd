"""Populations of counts as rates, and cells that follow a change of rate, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import poisson

from scvi_causal.model.gim._rates import PSEUDO_RATE, RateSums, change_rate, moved_counts


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


def test_cells_follow_the_fold_on_their_own_library():
    """Poisson cells of two depths: what is drawn has the new rate in both, and nothing changes where nothing changes."""
    rng = np.random.default_rng(3)
    library = torch.tensor(np.repeat([[2_000.0], [10_000.0]], 20_000, axis=0), dtype=torch.float32)
    rate = torch.tensor([[8.0, 8.0, 0.0, 5.0]]).expand(len(library), 4)
    counts = torch.tensor(rng.poisson(rate.numpy() * library.numpy() / 1e4), dtype=torch.float32)
    new = torch.tensor([2.0, 24.0, 5.0, 5.0])
    log_fold = torch.log((new + PSEUDO_RATE) / (rate[0] + PSEUDO_RATE))
    log_fold[3] = 0.0
    moved = moved_counts(counts, library, rate, log_fold.expand(len(library), 4), torch.full((4,), 1e6))
    drawn = moved.sample()
    for deep in (False, True):
        mine = (library[:, 0] > 5_000) == deep
        expected = new * (1.0 if deep else 0.2)
        torch.testing.assert_close(drawn[mine].mean(0), expected, rtol=0.03, atol=0.0)
        torch.testing.assert_close(moved.mean[mine].mean(0), expected, rtol=0.03, atol=0.0)
        torch.testing.assert_close(drawn[mine].var(0), expected, rtol=0.06, atol=0.0)
    torch.testing.assert_close(drawn[:, 3], counts[:, 3], rtol=0, atol=0)
    torch.testing.assert_close(moved.mean[:, 3], counts[:, 3], rtol=0, atol=0)
