"""The statistics hold what they promise: against closed forms, brute force and simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scvi_causal.benchmark._resampling import benjamini_hochberg, bootstrap_means, interval


def test_bootstrap_has_the_variance_of_the_plug_in_mean():
    x = np.random.default_rng(0).normal(3.0, 2.0, 40)
    means = bootstrap_means(x, np.arange(40), n_boot=20_000)
    np.testing.assert_allclose(means.mean(), x.mean(), atol=0.01)
    np.testing.assert_allclose(means.std(), x.std() / np.sqrt(40), rtol=0.03)


def test_clusters_are_drawn_together():
    # four copies of each value carry the information of one: the same resamples, not an interval half as wide
    x = np.random.default_rng(0).normal(size=12)
    once = bootstrap_means(x, np.arange(12), n_boot=500)
    copies = bootstrap_means(np.repeat(x, 4), np.repeat(np.arange(12), 4), n_boot=500)
    np.testing.assert_allclose(copies, once)
    apart = bootstrap_means(np.repeat(x, 4), np.arange(48), n_boot=500)
    np.testing.assert_allclose(apart.std() / once.std(), 0.5, rtol=0.15)


def test_rows_have_the_same_weight_whatever_the_size_of_their_cluster():
    x, clusters = np.array([0.0, 0.0, 0.0, 4.0]), ["a", "a", "a", "b"]
    assert set(bootstrap_means(x, clusters, n_boot=200).round(6)) == {0.0, 1.0, 4.0}  # aa, ab, bb
    two = bootstrap_means(np.column_stack([x, 2 * x]), clusters, n_boot=200)
    np.testing.assert_allclose(two[:, 1], 2 * two[:, 0])


@pytest.mark.parametrize("n", [6, 25])
def test_interval_covers_the_truth_also_for_few_perturbations(n):
    rng = np.random.default_rng(1)
    hit = plain = 0
    for seed in range(400):
        x = rng.normal(size=n)
        means = bootstrap_means(x, np.arange(n), n_boot=500, seed=seed)
        low, high = interval(means, n)
        hit += low <= 0 <= high
        low, high = np.quantile(means, [0.025, 0.975])
        plain += low <= 0 <= high
    assert 0.92 <= hit / 400 <= 0.985
    assert n > 6 or plain / 400 < 0.92  # why the interval is widened


def test_interval_of_one_cluster_is_not_known():
    assert np.isnan(interval(np.ones(10), 1)).all()


def test_benjamini_hochberg_by_hand():
    np.testing.assert_allclose(benjamini_hochberg([0.01, np.nan, 0.02, 0.9]), [0.03, np.nan, 0.03, 0.9])
    assert np.isnan(benjamini_hochberg([np.nan])).all()
    assert stats.false_discovery_control([0.01, 0.02, 0.9]).tolist() == benjamini_hochberg([0.01, 0.02, 0.9]).tolist()
