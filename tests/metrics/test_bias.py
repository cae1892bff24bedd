"""What sampling noise does to each metric, on simulated populations whose truth is known.

Every expectation is a closed form; averages over replicates have to meet it within a few of their own standard errors.
"""

from __future__ import annotations

import numpy as np
import pytest

from scvi_causal.metrics import (
    de_overlap,
    differential_expression,
    energy_distance,
    mae,
    mse,
    mse_ratio,
    mse_unbiased,
    noise_ceiling,
    pearson_centred,
    pearson_effect,
)


def assert_mean(values, expected, n_errors=4):
    """The average of replicates is the expected value, within standard errors."""
    values = np.asarray(values)
    assert values.mean() == pytest.approx(expected, abs=n_errors * values.std(ddof=1) / values.size**0.5)


def is_biased(values, truth, n_errors=10):
    values = np.asarray(values)
    return abs(values.mean() - truth) > n_errors * values.std(ddof=1) / values.size**0.5


@pytest.fixture(scope="module")
def counts():
    """400 pairs of Poisson populations (skewed, another variance for each gene), their truth and their noise."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(2, 0.5, (2, 60))
    rates[1, 15:] = rates[0, 15:]
    n, m = 40, 25
    pairs = [(rng.poisson(rates[0], (n, 60)), rng.poisson(rates[1], (m, 60))) for _ in range(400)]
    return pairs, ((rates[0] - rates[1]) ** 2).mean(), rates[0].mean() / n, rates[1].mean() / m


def test_mse_is_biased_by_both_sampling_variances_and_mse_unbiased_is_not(counts):
    pairs, truth, noise, own_noise = counts
    biased = [mse(x, y) for x, y in pairs]
    assert is_biased(biased, truth)
    assert_mean(biased, truth + noise + own_noise)
    assert_mean([mse_unbiased(x, y) for x, y in pairs], truth)


def test_a_prediction_without_cells_is_charged_only_the_noise_of_the_observation(counts):
    pairs, truth, _, own_noise = counts
    assert_mean([mse_unbiased(x, y.mean(0)) for x, y in pairs], truth + own_noise)


def test_the_cap_charges_the_noise_beyond_that_of_the_observation(counts):
    pairs, truth, noise, own_noise = counts
    assert own_noise > noise
    capped = [mse_unbiased(x, y, capped=True) for x, y in pairs]
    assert is_biased(capped, truth, n_errors=4)
    assert_mean(capped, truth + own_noise - noise)


def test_mse_ratio_is_pulled_towards_one_and_its_corrected_sums_are_not():
    rng = np.random.default_rng(1)
    control, effect = rng.gamma(2, 0.5, 60), rng.gamma(1, 0.3, 60)
    draw = lambda rate: rng.poisson(rate, (30, 60))
    runs = [(draw(control + effect), draw(control + effect / 2), draw(control)) for _ in range(400)]
    truth = 0.25  # half of the effect is missing
    assert is_biased([mse_ratio(*run) for run in runs], truth)
    above = np.array([mse_unbiased(o, p) for o, p, _ in runs])
    below = np.array([mse_unbiased(o, c) for o, _, c in runs])
    assert_mean(above - truth * below, 0)


def test_mae_of_replicates():
    rng = np.random.default_rng(2)
    sd, n, m = rng.gamma(2, 0.5, 50), 20, 30
    replicates = [mae(rng.normal(0, sd, (n, 50)), rng.normal(0, sd, (m, 50))) for _ in range(400)]
    assert_mean(replicates, np.sqrt(2 * sd**2 * (1 / n + 1 / m) / np.pi).mean())


def test_shared_controls_inflate_pearson_where_independent_ones_do_not():
    """No perturbation does anything, the prediction is exact, and still: the noise of the control mean is on both sides."""
    rng = np.random.default_rng(3)
    n, n_control, n_genes = 60, 30, 2000
    profile = rng.normal(size=n_genes)
    # means of n cells of variance 1 are normal with variance 1 / n
    runs = [(rng.normal(profile, n**-0.5), rng.normal(profile, n_control**-0.5, (2, n_genes))) for _ in range(200)]
    shared = [pearson_effect(observed, profile, a) for observed, (a, _) in runs]
    independent = [pearson_effect(observed, profile, a, b) for observed, (a, b) in runs]
    assert_mean(independent, 0)
    assert np.mean(shared) == pytest.approx(1 / np.sqrt(1 + n_control / n), abs=0.01)  # 0.82 for nothing


def test_noise_of_the_average_inflates_the_centred_pearson():
    rng = np.random.default_rng(4)
    n_genes = 2000
    for n_perturbations in (2, 20):
        # all profiles are the same but for noise: there is nothing to be right about
        draws = rng.normal(size=(200, n_perturbations + 2, n_genes))
        values = [pearson_centred(run[0], run[1], run[2:].mean(0)) for run in draws]
        assert np.mean(values) == pytest.approx(1 / (n_perturbations + 1), abs=0.01)


def test_energy_distance_is_biased_as_v_statistic_and_not_as_u_statistic():
    rng = np.random.default_rng(5)
    n, m = 15, 25
    pairs = [(rng.normal(size=(n, 1)), rng.normal(1, 1, size=(m, 1))) for _ in range(1500)]
    from scipy.stats import norm

    within = 2 / np.sqrt(np.pi)  # E|x - x'| of a standard normal
    between = within * np.exp(-0.25) + 1 - 2 * norm.cdf(-np.sqrt(0.5))  # E|N(1, 2)|
    truth = 2 * between - 2 * within
    v_statistics = [energy_distance(x, y, unbiased=False) for x, y in pairs]
    assert is_biased(v_statistics, truth)
    assert_mean(v_statistics, truth + within * (1 / n + 1 / m))
    assert_mean([energy_distance(x, y) for x, y in pairs], truth)


def test_halves_with_spearman_brown_estimate_the_correlation_of_full_replicates():
    rng = np.random.default_rng(6)
    n, n_genes, strength = 40, 400, 0.15
    zero = np.zeros(n_genes)
    truth = strength**2 / (strength**2 + 1 / n)  # of two replicates of n cells with variance 1
    halves, corrected, replicates = [], [], []
    for _ in range(120):
        effect = rng.normal(0, strength, n_genes)
        cells, again = rng.normal(effect, 1, size=(2, n, n_genes))
        options = {"distances": False, "n_splits": 2}
        halves.append(noise_ceiling(cells, zero, zero, **options)["pearson_effect"])
        corrected.append(noise_ceiling(cells, zero, zero, **options, spearman_brown=True)["pearson_effect"])
        replicates.append(pearson_effect(cells, again, zero))
    assert is_biased(halves, truth)
    assert np.mean(halves) == pytest.approx(strength**2 / (strength**2 + 2 / n), abs=0.02)
    assert_mean(replicates, truth)
    assert np.mean(corrected) == pytest.approx(truth, abs=0.02)  # a curved function of noisy halves: nearly unbiased


def test_calls_of_two_replicates_do_not_overlap_fully():
    rng = np.random.default_rng(7)
    effect = np.where(np.arange(100) < 40, rng.gamma(2, 0.3, 100), 0)
    draw = lambda shift: differential_expression(rng.normal(shift, 1, (50, 100)), rng.normal(size=(50, 100)))
    values = [de_overlap(draw(effect), draw(effect)) for _ in range(50)]
    assert 0.4 < np.mean(values) < 0.8
