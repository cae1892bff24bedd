"""The Monte Carlo table of the specification with fewer replicates (parity check 13); benchmarks/effect_coverage.py has all."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_causal.effects import estimate_effects, marginal_mean, standard_error

N, SHARE, GENES, SCREENS = 600, 0.15, 200, 10
"""Genes are replicates of one another: 2,000 in all."""


def screens():
    """State, outcome and treated cells."""
    rng = np.random.default_rng(0)
    for _ in range(SCREENS):
        z = rng.normal(size=(N, GENES))
        yield z, 2 + 1.5 * z + rng.normal(0, 0.5, z.shape), rng.random(N) < SHARE


DESIGNS = {
    # predictions, method: standard deviation and Hájek standard error, as the specification has them
    "oracle": (lambda z: 2 + 1.5 * z, "robust", 0.0805, 0.0806),
    "zero": (lambda z: 0 * z, "robust", 0.170, 0.166),
    "ten": (lambda z: 0 * z + 10, "robust", 0.164, 0.166),
    "off": (lambda z: -3 + 0.5 * z, "robust", 0.126, 0.126),
    "off, tuned": (lambda z: -3 + 0.5 * z, "tuned", 0.0804, 0.0804),
    "anti": (lambda z: -2 * z, "robust", 0.347, 0.350),
    "anti, tuned": (lambda z: -2 * z, "tuned", 0.081, 0.0805),
    "group mean": (lambda z: 0 * z, "group", 0.166, 0.166),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_table_of_the_specification(design):
    predict, method, sd, se = DESIGNS[design]
    found = []
    for z, y, treated in screens():
        label = np.where(treated, "A", "other")
        found.append(estimate_effects(y, label, {"A": predict(z)}, "A", contrast=None, method=method))
    estimate = np.concatenate([t["estimate"] for t in found])
    covered = np.concatenate([(t["ci_low"] <= 2) & (t["ci_high"] >= 2) for t in found])
    assert abs(estimate.mean() - 2) < 4 * sd / np.sqrt(len(estimate))
    assert estimate.std() == pytest.approx(sd, rel=0.08)
    assert np.concatenate([t["se"] for t in found]).mean() == pytest.approx(se, rel=0.06)
    assert 0.935 < covered.mean() < 0.965


def test_plug_in_form_is_far_too_wide_for_predictions_off_level():
    """The specification: 0.80 in place of 0.164."""
    errors = [
        standard_error(marginal_mean(y, 0 * z + 10, treated, form="plug-in").influence).mean()
        for z, y, treated in screens()
    ]
    assert np.mean(errors) == pytest.approx(0.80, rel=0.06)


def test_reconstructions_are_biased_and_always_flagged():
    """Bias (1 - share) and no coverage, while the group mean is fine."""
    for z, y, treated in list(screens())[:3]:
        label = np.where(treated, "A", "other")
        f = np.where(treated[:, None], y, 2 + 1.5 * z + 1)
        table = estimate_effects(y, label, {"A": f}, "A", contrast=None)
        assert table["estimate"].mean() - 2 == pytest.approx(0.85, abs=0.05)
        assert ((table["ci_low"] <= 2) & (table["ci_high"] >= 2)).mean() < 0.01
        assert (table["flag"] == "reconstructed, unbalanced").all()


@pytest.mark.parametrize("method", ["group", "robust", "tuned"])
def test_contrasts_cover(method):
    """Skewed outcomes with many zeros, unequal variances, predictions that know half of the state."""
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(5):
        treatment = rng.choice(["control", "A", "B"], 900, p=[0.2, 0.1, 0.7])
        z = rng.gamma(2.0, size=(900, 200))
        rate = {"control": 0.5, "A": 0.9, "B": 2.0}
        y = np.log1p(rng.poisson(z * np.array([rate[t] for t in treatment])[:, None]))
        predicted = {name: np.log1p(z**0.5 * r) for name, r in rate.items()}
        big = rng.gamma(2.0, size=400_000)
        truth = np.log1p(rng.poisson(big * 0.9)).mean() - np.log1p(rng.poisson(big * 0.5)).mean()
        table = estimate_effects(y, treatment, predicted, "A", method=method)
        covered.append((table["ci_low"] <= truth) & (table["ci_high"] >= truth))
    assert 0.93 < np.mean(covered) < 0.97
