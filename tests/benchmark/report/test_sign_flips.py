"""Sign flips against brute force and closed forms, and the chance of a false finding by simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from scvi_causal.benchmark._sign_flips import flip_test, pairs_needed, sign_patterns


def consistency(d):
    """Sum over the root of the sum of squares; nothing where there is no difference."""
    size = np.sqrt((d**2).sum(0))
    return np.abs(d.sum(0)) / np.where(size > 0, size, 1)


def by_definition(d):
    """Step-down max-T, pattern by pattern and column by column."""
    d = np.nan_to_num(d)
    patterns = [np.array(p)[:, None] for p in product([1, -1], repeat=len(d))]
    all_r = np.array([consistency(p * d) for p in patterns])
    observed = consistency(d)
    order = np.argsort(-observed)
    alone = (all_r >= observed - 1e-7).mean(0)
    corrected, last = np.empty(len(observed)), 0.0
    for i, column in enumerate(order):
        last = max(last, (all_r[:, order[i:]].max(1) >= observed[column] - 1e-7).mean())
        corrected[column] = last
    return alone, corrected


@pytest.mark.parametrize("n", [2, 5, 8])
def test_it_is_the_definition(n):
    rng = np.random.default_rng(n)
    d = rng.normal(size=(n, 6)) + [2.0, 1.0, 0.5, 0.0, 0.0, -1.0]
    d[0, 2] = np.nan
    d[:, 4] = 0.0
    found = flip_test(d)
    for one, other in zip(found, by_definition(d), strict=True):
        np.testing.assert_allclose(one, other)
    assert found[1][4] == 1.0
    assert (found[1] >= found[0]).all()


def test_one_test_is_the_permutation_test_of_scipy():
    d = np.random.default_rng(0).normal(0.5, 1, 9)
    expected = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    (p,), (corrected,) = flip_test(d[:, None])
    assert p == corrected == pytest.approx(expected.pvalue)


def test_a_clean_sweep_of_correlated_metrics_is_found_with_eight_pairs_where_holm_finds_nothing():
    rng = np.random.default_rng(1)
    quality = rng.normal(1.0, 0.2, 8)
    sweep = quality[:, None] + rng.normal(0, 0.1, (8, 6))  # six metrics, eight of eight
    noise = rng.normal(size=(8, 10))
    p, corrected = flip_test(np.column_stack([sweep, noise]))
    np.testing.assert_allclose(p[:6], 2 / 256)
    assert (corrected[:6] < 0.05).all()
    assert p.min() * 16 > 0.05
    assert (corrected[6:] > 0.05).all()


def test_copies_of_a_test_cost_nothing_and_signs_are_one_units():
    d = np.random.default_rng(2).normal(1, 1, (8, 2))
    one, copied = flip_test(d)[1], flip_test(np.repeat(d, 5, axis=1))[1]
    np.testing.assert_allclose(copied, np.repeat(one, 5))
    np.testing.assert_allclose(flip_test(-d)[1], one)
    np.testing.assert_allclose(flip_test(d * [1e6, 1e-6])[1], one)


def test_many_pairs_use_random_patterns_that_are_seeded():
    d = np.random.default_rng(3).normal(0.3, 1, (40, 3))
    first, again, other = (flip_test(d, seed=s)[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first, other, atol=0.02)
    np.testing.assert_allclose(first, stats.ttest_1samp(d, 0).pvalue, atol=0.02)
    assert first.min() >= 1e-4
    assert sign_patterns(14, 10_000, 0).shape == (8192, 14)
    assert len(np.unique(sign_patterns(6, 10_000, 0), axis=0)) == 32
    assert sign_patterns(15, 10_000, 0).shape == (10_000, 15)


def test_nothing_to_test():
    np.testing.assert_array_equal(flip_test(np.ones((1, 2))), 1.0)  # one pair says nothing
    np.testing.assert_array_equal(flip_test(np.zeros((5, 2))), 1.0)
    assert flip_test(np.empty((0, 2)))[0].tolist() == [1.0, 1.0]
    assert flip_test(np.empty((4, 0)))[0].size == 0


def test_pairs_needed_is_the_first_number_that_can_be_significant():
    n = pairs_needed()
    assert n == 6
    assert flip_test(np.ones((n, 1)))[0] < 0.05
    assert flip_test(np.ones((n - 1, 1)))[0] >= 0.05


def false_findings(make, n, n_screens=1_500, seed=0):
    """Share of screens in which any test without a difference is called, and of the real ones that are found."""
    rng = np.random.default_rng(seed)
    false, found = [], []
    for _ in range(n_screens):
        d, real = make(rng, n)
        called = flip_test(d, n_flips=500)[1] < 0.05
        false.append(called[~real].any())
        found.append(called[real].mean() if real.any() else np.nan)
    return np.mean(false), np.mean(found)


def equal_models(rng, n):
    """Four models, six correlated metrics, scores of heavy tails; the baseline is another draw of the same."""
    mix = np.eye(6) + 0.5 * rng.normal(size=(6, 6))
    scores = rng.standard_t(3, size=(n, 5, 6)) @ mix
    d = (scores[:, :4] - scores[:, 4:]).reshape(n, -1)
    return d, np.zeros(24, dtype=bool)


def skewed_models(rng, n):
    """Scores that are skewed: what all models share with the baseline is not symmetric over models."""
    scores = np.exp(rng.normal(size=(n, 5, 6)) + rng.normal(size=(n, 5, 1)))
    return (scores[:, :4] - scores[:, 4:]).reshape(n, -1), np.zeros(24, dtype=bool)


def one_better_model(rng, n):
    """The first model is better, the others are not: strong control."""
    d, real = equal_models(rng, n)
    d[:, :6] += 8.0
    real[:6] = True
    return d, real


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize("make", [equal_models, skewed_models, one_better_model])
def test_any_false_finding_is_rare(make, n):
    false, found = false_findings(make, n)
    assert false < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1_500)
    if make is one_better_model:
        assert found > 0.5
