"""Shrinkage of effects: exact limits, brute force, and risk where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from scvi_causal.model.base._shrinkage import (
    RowNoise,
    mean_weights,
    noise_blocks,
    pooling,
    shrink_effects,
    stein_factor,
    sure_factor,
)


def independent(variance) -> RowNoise:
    """Noise without shared controls."""
    return RowNoise(variance, np.zeros((len(variance), 1)), np.zeros((1, variance.shape[1])))


def shrink_tokens(effect, variance, **options):
    """Shrink single tokens of a single context."""
    n = len(effect)
    noise = variance if isinstance(variance, RowNoise) else independent(np.broadcast_to(variance, effect.shape))
    return shrink_effects(effect, noise, np.eye(n), np.zeros(n, dtype=int), **options)


# ---------------------------------------------------------------------- noise of combinations


def random_noise(rng, n_rows=6, n_controls=3, n_genes=5) -> RowNoise:
    sizes = [(n_rows, n_genes), (n_rows, n_controls), (n_controls, n_genes)]
    return RowNoise(*(rng.gamma(2, 1, size) for size in sizes))


def test_noise_of_combinations_is_that_of_the_covariance_matrix():
    rng = np.random.default_rng(0)
    noise, coefficients, less = random_noise(rng), rng.normal(size=(4, 6)), rng.normal(size=6)
    found, around = noise.of(csr_matrix(coefficients)), noise.of(csr_matrix(coefficients), less)
    for gene in range(5):
        covariance = np.diag(noise.own[:, gene]) + noise.loading @ np.diag(noise.shared[:, gene]) @ noise.loading.T
        np.testing.assert_allclose(found[:, gene], np.diag(coefficients @ covariance @ coefficients.T))
        shifted = coefficients - less
        np.testing.assert_allclose(around[:, gene], np.diag(shifted @ covariance @ shifted.T))
    genes = np.array([4, 0, 0, 2])
    np.testing.assert_allclose(noise.of_entries(csr_matrix(coefficients), genes), found[np.arange(4), genes])
    blocks = np.eye(2)[[0, 1, 0, 0, 1]]
    np.testing.assert_allclose(noise.summed(blocks).of(csr_matrix(coefficients)), found @ blocks)


# ---------------------------------------------------------------------- the factor


def test_the_factor_is_the_share_of_the_truth():
    """Of a normal prior with variance t and noise with variance s, t / (t + s): what minimises the squared error."""
    rng = np.random.default_rng(0)
    for spread in (0.2, 1.0, 5.0):
        true = np.sqrt(spread) * rng.normal(size=200_000)
        estimate = true + rng.normal(size=true.shape)
        factor = stein_factor((estimate**2).sum(), true.size)
        assert factor == pytest.approx(spread / (spread + 1), abs=0.01)
        assert factor == pytest.approx(estimate @ true / (estimate @ estimate), abs=0.01)


def test_limits_of_the_factor():
    np.testing.assert_array_equal(
        stein_factor(np.array([4.0, 4.0, 1.0, 0.0]), np.array([0.0, 1.0, 3.0, 0.0])), [1, 0.75, 0, 0]
    )


# ---------------------------------------------------------------------- blocks


def test_blocks_share_the_noise_and_are_ordered_by_it():
    noise = np.random.default_rng(0).gamma(0.5, 1, 400)
    blocks = noise_blocks(noise)
    assert blocks.shape == (400, 4)
    np.testing.assert_array_equal(blocks.sum(1), 1)
    np.testing.assert_allclose(noise @ blocks / noise.sum(), 0.25, atol=0.02)
    bounds = [(noise[members].min(), noise[members].max()) for members in blocks.T.astype(bool)]
    assert all(lower[1] <= upper[0] for lower, upper in zip(bounds, bounds[1:], strict=False))


@pytest.mark.parametrize(("n_genes", "n_blocks"), [(1, 1), (49, 1), (50, 2), (5_000, 4)])
def test_few_genes_stay_together(n_genes, n_blocks):
    for noise in (np.ones(n_genes), np.zeros(n_genes)):
        blocks = noise_blocks(noise)
        assert blocks.shape == (n_genes, n_blocks)
        np.testing.assert_array_equal(blocks.sum(1), 1)


# ---------------------------------------------------------------------- the mean


def test_weights_of_equals_are_the_inverse_noise():
    rng = np.random.default_rng(0)
    noise = np.array([1.0, 2.0, 4.0, 4.0])
    values = rng.normal(size=(4, 50_000)) * np.sqrt(noise / 50_000)[:, None]
    np.testing.assert_allclose(mean_weights(values, noise), [0.5, 0.25, 0.125, 0.125], atol=0.01)


def test_a_strong_member_does_not_decide():
    values = np.random.default_rng(0).normal(size=(10, 500))
    values[0] += 30.0
    weight = mean_weights(values, np.full(10, 500.0))
    assert weight[0] < 1e-3
    np.testing.assert_allclose(weight.sum(), 1)
    np.testing.assert_allclose(mean_weights(7 * values, np.full(10, 49 * 500.0)), weight)  # whatever the unit


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_members_that_are_equally_far_apart_weigh_the_same(n):
    for noise in (0.0, 1e-3, 1.0):
        np.testing.assert_allclose(mean_weights(5 * np.eye(n, 8), np.full(n, noise)), 1 / n, rtol=1e-6)


def test_nothing_to_weigh():
    np.testing.assert_allclose(mean_weights(np.zeros((4, 3)), np.zeros(4)), 0.25)


# ---------------------------------------------------------------------- responses of tokens


def test_pooled_responses_of_single_tokens_are_weighted_means():
    dosage = np.array([[1, 0, 0], [1, 0, 0], [0, 2, 0.0]])
    found = pooling(csr_matrix(dosage), np.array([1.0, 3.0, 5.0]))
    np.testing.assert_allclose(found.toarray(), [[0.25, 0.75, 0], [0, 0, 0.5], [0, 0, 0]])


def test_pooled_responses_of_combinations_are_least_squares():
    rng = np.random.default_rng(0)
    dosage, precision = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 2, 1.0]]), rng.gamma(2, 1, 5)
    effect, root = rng.normal(size=(5, 4)), np.sqrt(precision)[:, None]
    expected = np.linalg.lstsq(root * dosage, root * effect, rcond=None)[0]
    np.testing.assert_allclose(pooling(csr_matrix(dosage), precision) @ effect, expected, atol=1e-4)


def test_tokens_that_no_row_tells_apart_share():
    np.testing.assert_allclose(pooling(csr_matrix(np.ones((1, 2))), np.ones(1)).toarray(), [[0.5], [0.5]], rtol=1e-4)


# ---------------------------------------------------------------------- limits


def design():
    """Three tokens in three contexts, two of them together as well, and one token that no row has."""
    dosage = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]] * 3, dtype=float)
    return dosage, np.repeat([0, 1, 2], 4)


def test_without_noise_nothing_changes():
    dosage, context = design()
    effect = np.random.default_rng(0).normal(size=(12, 60))
    for noise in (0.0, 1e-12):
        found = shrink_effects(effect, independent(np.full(effect.shape, noise)), dosage, context)
        np.testing.assert_allclose(found.effect, effect, atol=1e-4)


def test_below_the_noise_nothing_is_left():
    dosage, context = design()
    effect = np.random.default_rng(0).normal(size=(12, 60))
    found = shrink_effects(
        effect, independent(np.full(effect.shape, 1e3)), dosage, context, target=np.array([0, 1, -1, 3])
    )
    assert (found.effect == 0).all()
    assert (found.kept == 0).all()
    assert (found.variance(np.ones((4, 60))) == 0).all()


def test_one_token_is_james_stein():
    effect = np.random.default_rng(0).normal(size=(1, 40))
    found = shrink_tokens(effect, 0.3)
    factor = 1 - 0.3 * 40 / (effect**2).sum()
    np.testing.assert_allclose(found.effect, factor * effect)
    np.testing.assert_allclose(found.mean_kept, factor)
    np.testing.assert_allclose(found.variance(np.full((1, 40), 0.3)), factor * 0.3)


def test_tokens_that_differ_by_noise_alone_become_their_mean():
    rng = np.random.default_rng(0)
    common = 3 * rng.normal(size=2_000)
    found = shrink_tokens(common + rng.normal(size=(12, 2_000)), 1.0)
    np.testing.assert_allclose(found.effect, np.broadcast_to(common, (12, 2_000)), atol=1.5)
    assert found.kept.mean() < 0.05
    assert found.mean_kept.min() > 0.95


def test_noise_of_the_controls_is_no_mean_response():
    """All tokens have the noise of the same few controls in common."""
    rng = np.random.default_rng(0)
    effect = rng.normal(size=2_000) + 0.1 * rng.normal(size=(12, 2_000))
    noise = RowNoise(np.full(effect.shape, 0.01), np.ones((12, 1)), np.ones((1, 2_000)))
    assert (shrink_tokens(effect, noise).effect ** 2).mean() < 0.02
    assert (shrink_tokens(effect, 1.01).effect ** 2).mean() > 0.8  # taken for independent, it would be one
    strong = effect + 5.0
    np.testing.assert_allclose(shrink_tokens(strong, noise).effect.mean(), 5.0, rtol=0.1)


# ---------------------------------------------------------------------- contexts


def test_contexts_that_differ_by_noise_alone_are_pooled():
    rng = np.random.default_rng(0)
    dosage, context = np.tile(np.eye(4), (3, 1)), np.repeat([0, 1, 2], 4)
    response = 2 * rng.normal(size=(4, 3_000))
    effect = dosage @ response + rng.normal(size=(12, 3_000))
    found = shrink_effects(effect, independent(np.ones(effect.shape)), dosage, context).effect
    np.testing.assert_allclose(((found - dosage @ response) ** 2).mean(), 1 / 3, rtol=0.15)


def test_contexts_that_differ_are_kept_apart():
    rng = np.random.default_rng(0)
    dosage, context = np.ones((5, 1)), np.arange(5)
    true = 3 * rng.normal(size=(5, 500))
    effect = true + 0.3 * rng.normal(size=true.shape)
    # each context has its own controls
    noise = RowNoise(np.full(true.shape, 0.045), np.eye(5), np.full((5, 500), 0.045))
    found = shrink_effects(effect, noise, dosage, context).effect
    np.testing.assert_allclose(found, effect, rtol=0.02, atol=0.1)
    assert ((found - true) ** 2).mean() <= ((effect - true) ** 2).mean()


def test_a_context_in_which_all_tokens_differ_alike():
    """What they have in common there is known better than any one of them."""
    rng = np.random.default_rng(0)
    dosage, context = np.tile(np.eye(10), (2, 1)), np.repeat([0, 1], 10)
    true = np.where(context == 0, 1.0, -1.0)[:, None] * 0.7 * rng.normal(size=2_000)
    found = shrink_effects(true + rng.normal(size=true.shape), independent(np.ones(true.shape)), dosage, context).effect
    assert ((found - true) ** 2).mean() < 0.15


# ---------------------------------------------------------------------- targets


def test_targets_are_kept_where_nothing_else_is():
    rng = np.random.default_rng(0)
    effect, target = 0.3 * rng.normal(size=(10, 400)), np.arange(10)
    effect[target, target] -= 1.0
    plain, found = shrink_tokens(effect, 0.09), shrink_tokens(effect, 0.09, target=target)
    np.testing.assert_allclose(found.effect[target, target], effect[target, target], atol=0.15)
    others = np.ones(effect.shape, dtype=bool)
    others[target, target] = False
    assert np.abs(found.effect[others]).max() < 0.3
    assert ((found.effect[target, target] + 1) ** 2).mean() < 0.25 * ((plain.effect[target, target] + 1) ** 2).mean()


def test_targets_that_do_not_move_are_noise_too():
    effect = 0.3 * np.random.default_rng(0).normal(size=(30, 400))
    found = shrink_tokens(effect, 0.09, target=np.arange(30))
    assert (found.effect**2).mean() < 0.1 * 0.09
    assert found.kept[np.arange(30), np.arange(30)].max() < 0.4


# ---------------------------------------------------------------------- single genes


def test_one_sure_gene_of_many_is_kept_without_being_named():
    rng = np.random.default_rng(0)
    effect, noise = 0.3 * rng.normal(size=(20, 400)), np.full((20, 400), 0.09)
    effect[3, 7] -= 3.0
    found = shrink_tokens(effect, 0.09).effect
    np.testing.assert_allclose(found[3, 7], effect[3, 7], rtol=0.1)  # a part is in the mean of all tokens
    found[3, 7] = 0.0
    assert (found**2).mean() < 0.1 * 0.09
    assert (sure_factor(effect, noise) > 0).sum() == 1


def test_noise_is_hardly_ever_sure():
    rng = np.random.default_rng(1)
    kept = [(sure_factor(rng.normal(size=(20, 300)), np.ones((20, 300))) > 0).sum() for _ in range(50)]
    assert np.mean(kept) < 0.4  # 1 / sqrt(pi ln n) in theory


def test_a_gene_without_counts_in_one_population_is_not_sure_of_it():
    """No count, no variance; other populations tell what the gene varies by."""
    effect, noise = np.full((10, 50), 0.1), np.full((10, 50), 0.04)
    effect[0, 0], noise[0, 0] = -0.3, 0.0
    assert not sure_factor(effect, noise).any()
    assert not sure_factor(np.zeros((2, 3)), np.zeros((2, 3))).any()
    np.testing.assert_allclose(sure_factor(np.full((2, 3), 1e9), np.zeros((2, 3))), 1.0)


# ---------------------------------------------------------------------- risk


def simulated(ratio, rng, n_tokens=20, n_genes=300):
    """Tokens around a mean response; ``ratio`` is the variance of both over that of the noise, which differs by gene and token."""
    noise = rng.gamma(3, 1 / 3, (n_tokens, 1)) * rng.gamma(1, 1, n_genes)
    mean = np.sqrt(ratio / 2) * rng.normal(size=n_genes)
    true = mean + np.sqrt(ratio / 2) * rng.normal(size=(n_tokens, n_genes))
    return true, noise, true + np.sqrt(noise) * rng.normal(size=true.shape)


@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0])
def test_risk_is_below_raw_and_pooled(ratio):
    rng = np.random.default_rng(0)
    risks = []
    for _ in range(10):
        true, noise, estimate = simulated(ratio, rng)
        pooled = np.broadcast_to(estimate.mean(0), true.shape)
        # a single factor for all genes, given the truth: what no estimate of it can beat
        mean = true.mean(0) + (estimate - true).mean(0)
        around = estimate - mean
        oracle = mean + around * ((around * (true - mean)).sum(1) / (around**2).sum(1))[:, None]
        found = shrink_tokens(estimate, noise).effect
        risks.append([((guess - true) ** 2).mean() for guess in (estimate, pooled, found, oracle)])
    raw, pooled, found, oracle = np.mean(risks, 0)
    assert found < 1.001 * raw
    assert found < 1.001 * pooled
    assert found < 1.05 * oracle


def test_the_posterior_variance_is_the_squared_error():
    rng = np.random.default_rng(0)
    errors, claimed = [], []
    for _ in range(20):
        mean = rng.normal(size=400)
        true = mean + 0.7 * rng.normal(size=(20, 400))
        found = shrink_tokens(true + rng.normal(size=true.shape), 1.0)
        errors.append(((found.effect - true) ** 2).mean())
        claimed.append(found.variance(np.ones(true.shape)).mean())
    assert np.mean(claimed) == pytest.approx(np.mean(errors), rel=0.1)
