"""The noise ceiling: what a replicate of full size scores, and how sure that is, on data of which replicates can be drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_causal.metrics import METRICS, ObservedPopulation, cell_moments, noise_ceiling, pearson_effect
from scvi_causal.metrics._bootstrap import centred_interval, shrunk_mean
from scvi_causal.metrics._ceiling import full_size

N_GENES = 80


class Screen:
    """Populations whose genes vary together, and exact controls: only the perturbed cells are noisy."""

    def __init__(self, seed=0, strength=0.4):
        rng = np.random.default_rng(seed)
        self.rng, self.level = rng, rng.gamma(2, 1.0, N_GENES)
        self.effect = rng.normal(0, strength, N_GENES) * (np.arange(N_GENES) < 25)
        self.programmes = rng.normal(0, 0.4, (3, N_GENES))

    def draw(self, n_cells, effect=True):
        noise = self.rng.normal(size=(n_cells, 3)) @ self.programmes + self.rng.normal(size=(n_cells, N_GENES))
        return self.level + effect * self.effect + noise

    @property
    def control(self):
        return self.level


@pytest.fixture
def screen():
    return Screen()


def test_full_size_formulas():
    factors = {"mse": 0.5, "mae": 0.7, "r2": 0.25}
    assert full_size("pearson_effect", 0.5, factors) == pytest.approx(2 / 3)
    assert full_size("cosine_effect", -0.2, factors) == pytest.approx(-0.5)
    assert full_size("pearson_others", -0.9, factors) == full_size("pearson_centred", -1.0, factors) == -1.0
    assert full_size("mse", 0.3, factors) == 0.15
    assert full_size("mae", 1.0, factors) == 0.7
    assert full_size("r2", 0.8, factors) == pytest.approx(1 - 0.2 / 4)
    assert np.isnan(full_size("pearson_effect", np.nan, factors))
    for unchanged in ("energy", "mmd2", "variance_ratio", "de_overlap", "de_auprc", "coverage90", "n_observed"):
        assert full_size(unchanged, 0.7, {}) == 0.7
    for name, metric in METRICS.items():
        if metric.ceiling == "spearman-brown":
            assert full_size(name, 0.5, {}) == pytest.approx(2 / 3)


def test_the_corrected_value_is_that_of_a_replicate_of_full_size(screen):
    # more controls than matter, exactly at their level
    controls = [replace(cell_moments(screen.draw(500, False)), mean=screen.level, n_cells=5000)] * 2
    known = {"average": screen.level + 0.5 * screen.effect, "exclude": [0, 1]}
    ceilings, replicates = [], []
    for seed in range(80):
        observed, replicate = screen.draw(60), screen.draw(60)
        options = {"n_splits": 2, "spearman_brown": True, "metrics": "all", **known}
        ceilings.append(noise_ceiling(observed, *controls, seed, 20, **options))
        replicates.append(ObservedPopulation(observed, *controls, n_de=20).score(replicate, **known))
    assert ceilings[0]["n_observed"] == 30
    values = {name: [np.array([row[name] for row in rows]) for rows in (ceilings, replicates)] for name in ceilings[0]}
    # a finite-sample distance is not quite proportional to the root of n, and correlations of pairs are bounded
    tolerances = {"wasserstein": 0.03, "pair_correlation": 0.03, "r2_weighted": 0.03}
    calls = {"de_overlap", "de_auprc", "de_direction"}
    for name in set(values) - calls - {"n_observed", "n_predicted", "energy_pca"}:
        ceiling, replicate = values[name]
        error = np.sqrt((ceiling.var() + replicate.var()) / 80)
        assert abs(ceiling.mean() - replicate.mean()) < 3.5 * error + tolerances.get(name, 0.0), name
    # full size calls more genes than halves do, which nothing corrects
    for name in ("de_overlap", "de_auprc"):
        assert np.nanmean(values[name][0]) < np.nanmean(values[name][1]) - 0.1


def test_only_the_cells_that_enter_a_wasserstein_distance_count(screen):
    observed = screen.draw(60)
    half, full = (
        noise_ceiling(observed, screen.control, screen.control, metrics=["wasserstein"], max_cells=30, spearman_brown=s)
        for s in (False, True)
    )
    assert half == full


def test_a_prediction_without_noise_exceeds_a_replicate_by_a_root_and_half_the_error(screen):
    draws = [(screen.draw(60), screen.draw(60)) for _ in range(80)]
    controls = screen.control, screen.control
    exact = np.mean([pearson_effect(observed, screen.level + screen.effect, *controls) for observed, _ in draws])
    replicate = np.mean([pearson_effect(*pair, *controls) for pair in draws])
    assert exact == pytest.approx(np.sqrt(replicate), abs=0.02)
    assert exact > replicate + 0.05


def test_intervals_hold_the_expected_ceiling():
    """Nominal 95 %; the expectation is known from all draws."""
    screen = Screen(strength=0.8)
    rows = [
        noise_ceiling(
            screen.draw(60),
            screen.control,
            cell_moments(screen.draw(400, False)),
            seed,
            20,
            n_splits=2,
            n_bootstrap=100,
            metrics="all",
            distances=False,
            average=screen.level + 0.5 * screen.effect,
            exclude=[0],
            max_cells=20,
        )
        for seed in range(80)
    ]
    bounded = {key.removesuffix("_low") for key in rows[0] if key.endswith("_low")}
    assert bounded == {name for name, metric in METRICS.items() if metric.needs == "means"} - {"de_direction"}
    for name in bounded:
        value, low, high = (np.array([row[name + end] for row in rows]) for end in ("", "_low", "_high"))
        assert ((low <= value) & (value <= high)).all()
        assert 0.85 <= ((low <= value.mean()) & (value.mean() <= high)).mean(), name
        # and are not wide for nothing: the scatter of the estimate, within a factor
        assert 0.6 < ((high - low) / 3.92).mean() / value.std() < 1.7, name


def test_intervals_are_corrected_and_seeded_like_their_estimate(screen):
    observed = np.maximum(screen.draw(40), 0)
    half, full, again = (
        noise_ceiling(observed, screen.control, screen.control, n_bootstrap=50, spearman_brown=full, distances=False)
        for full in (False, True, True)
    )
    assert full == pytest.approx(again, rel=0, abs=0, nan_ok=True)
    for metric in ("pearson_effect", "mse", "r2"):
        factors = {"mse": 0.5, "r2": (1 - full["r2"]) / (1 - half["r2"])}
        for key in (metric, f"{metric}_low", f"{metric}_high"):
            assert full[key] == pytest.approx(full_size(metric, half[key], factors))
    assert 0.4 < factors["r2"] < 0.6
    sparse = noise_ceiling(sp.csr_matrix(observed), screen.control, screen.control, n_bootstrap=50, distances=False)
    assert sparse == pytest.approx(half, nan_ok=True)
    other = noise_ceiling(observed, screen.control, screen.control, 1, n_bootstrap=50, distances=False)
    assert other["mse_low"] != half["mse_low"]


def test_samples_scatter_around_a_mean_without_its_noise():
    rng = np.random.default_rng(0)
    truth = np.full(500, 0.3)
    lengths = []
    for _ in range(200):
        moments = cell_moments(rng.normal(truth, 1.0, size=(20, 500)))
        lengths.append((shrunk_mean(moments, np.zeros(500)) ** 2).sum())
    assert np.mean(lengths) == pytest.approx((truth**2).sum(), rel=0.03)
    # no effect beyond the noise: the reference itself
    moments = cell_moments(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    np.testing.assert_array_equal(shrunk_mean(moments, np.array([0.01, 0.0])), [0.01, 0.0])


def test_interval_of_few_or_constant_samples():
    assert centred_interval("mse", 2.0, np.array([1.0, 1.0, 1.0])) == pytest.approx((2, 2))
    assert np.isnan(centred_interval("mse", 2.0, np.array([1.0, np.nan]))).all()
    assert np.isnan(centred_interval("mse", np.nan, np.ones(5))).all()
    low, high = centred_interval("pearson_effect", 0.9, np.linspace(0.5, 0.99, 99))
    assert -1 < low < 0.9 < high < 1


def test_splits_without_a_number_do_not_cost_the_others_theirs():
    # so few cells that some halves have no significant gene
    weak = Screen(strength=0.25)
    control, observed = cell_moments(weak.draw(300, False)), weak.draw(50)
    options = {"metrics": ["de_direction"], "distances": False}
    score = lambda seed, n: noise_ceiling(observed, control, control, seed, n_splits=n, **options)["de_direction"]
    without = [seed for seed in range(20) if np.isnan(score(seed, 1))]
    assert 0 < len(without) < 20
    assert np.isfinite([score(seed, 12) for seed in without]).all()


def test_identical_cells_and_too_few(screen):
    same = np.tile(screen.control + 1, (8, 1))
    ceiling = noise_ceiling(same, screen.control, screen.control, n_bootstrap=20, spearman_brown=True)
    assert ceiling["mse"] == ceiling["energy"] == 0
    assert [ceiling["mse_low"], ceiling["mse_high"]] == pytest.approx([0, 0])
    assert ceiling["r2"] == 1
    with pytest.raises(ValueError, match="at least 4 observed cells, got 3"):
        noise_ceiling(same[:3], screen.control, screen.control)
    with pytest.raises(ValueError, match="'mss'.* 'mse'"):
        noise_ceiling(same, screen.control, screen.control, metrics=["mss"])
