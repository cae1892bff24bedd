"""Bands that hold for all genes of a perturbation together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scvi_causal.effects import estimate_effects
from scvi_causal.effects._multiple import bootstrap_critical_value, sidak_critical_value


def test_critical_values_of_independent_genes():
    rng = np.random.default_rng(0)
    value = bootstrap_critical_value(rng.normal(size=(4000, 20)), 0.95, 4000, rng)
    assert value == pytest.approx(sidak_critical_value(0.95, 20, np.array(np.inf)), abs=0.08)
    assert sidak_critical_value(0.95, 1, np.array(7.0)) == pytest.approx(stats.t.isf(0.025, 7))
    copies = np.repeat(rng.normal(size=(4000, 1)), 20, axis=1)
    assert bootstrap_critical_value(copies, 0.95, 4000, rng) == pytest.approx(1.96, abs=0.06)
    assert np.isnan(bootstrap_critical_value(np.zeros((9, 2)), 0.95, 10, rng))


def test_band_contains_the_interval_and_is_seeded(toy):
    kwargs = {"predicted": toy.predicted, "method": ["robust", "group"], "simultaneous": True}
    one, again, other = (estimate_effects(toy.y, toy.treatment, seed=s, **kwargs) for s in (1, 1, 2))
    assert (one["band_low"] < one["ci_low"]).all()
    assert (one["band_high"] > one["ci_high"]).all()
    assert one.equals(again)
    assert not one.equals(other)
    plain = estimate_effects(toy.y, toy.treatment, toy.predicted, method=["robust", "group"])
    np.testing.assert_allclose(plain["se"], one["se"], rtol=1e-9)
    assert "band_low" not in plain


def test_bands_with_clusters_are_sidaks(toy):
    table = estimate_effects(
        toy.y, np.tile(["control", "A"], 150), method="group", cluster=np.repeat(np.arange(10), 30), simultaneous=True
    )
    half = (table["band_high"] - table["estimate"]) / table["se"]
    np.testing.assert_allclose(half, sidak_critical_value(0.95, 5, np.array(9.0)), rtol=1e-6)


def test_bands_cover_all_genes_together():
    """Correlated genes, 120 screens: all genes are inside in 95 of 100."""
    rng = np.random.default_rng(3)
    loading = rng.normal(size=(4, 30))
    treatment = np.repeat(["A", "control"], [60, 500])
    inside, single = [], []
    for seed in range(120):
        y = rng.normal(size=(len(treatment), 4)) @ loading + rng.normal(size=(len(treatment), 30))
        table = estimate_effects(y, treatment, method="group", simultaneous=True, n_bootstrap=200, seed=seed)
        inside.append(((table["band_low"] < 0) & (table["band_high"] > 0)).all())
        single.append(((table["ci_low"] < 0) & (table["ci_high"] > 0)).all())
    assert 0.89 < np.mean(inside) < 0.99
    assert np.mean(single) < 0.75


def test_called_genes_are_false_at_most_as_often_as_asked():
    """Benjamini-Hochberg over genes and perturbations, genes correlated, a fifth of them with an effect."""
    rng = np.random.default_rng(4)
    treatment = np.repeat(["control", "A", "B"], [300, 60, 60])
    false, found, plain = [], [], []
    for _ in range(120):
        y = rng.normal(size=(420, 3)) @ rng.normal(0, 0.5, (3, 60)) + rng.normal(size=(420, 60))
        real = {name: rng.random(60) < 0.2 for name in ("A", "B")}
        for name, genes in real.items():
            y[treatment == name] += 0.8 * genes
        table = estimate_effects(y, treatment, method="group")
        true, called = np.concatenate([real["A"], real["B"]]), (table["padj"] < 0.05).to_numpy()
        false.append((called & ~true).sum() / max(called.sum(), 1))
        found.append(called[true].mean())
        plain.append((table["pvalue"][~true] < 0.05).sum() / (table["pvalue"] < 0.05).sum())
    assert 0.015 < np.mean(false) < 0.055
    assert np.mean(found) > 0.6
    assert np.mean(plain) > 0.1  # what p-values as they are would do
