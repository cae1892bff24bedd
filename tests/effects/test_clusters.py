"""Clusters against brute force, and the rules for few of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

from scvi_causal.effects import estimate_effects, marginal_mean, standard_error

from .test_table import chosen


def contrast_by_hand(toy, rows, target="A", method="robust"):
    labels = toy.treatment[rows]
    a, c = (
        marginal_mean(toy.y[rows], toy.predicted[name][rows], labels == name, method=method)
        for name in (target, "control")
    )
    return a.estimate - c.estimate, a.influence - c.influence


def test_sandwich_is_the_textbook_formula(toy):
    cluster = np.arange(300) % 7
    for method in ("group", "robust", "tuned"):
        table = estimate_effects(
            toy.y, toy.treatment, toy.predicted, "A", method=method, cluster=cluster, cluster_variance="sandwich"
        )
        estimate, influence = contrast_by_hand(toy, np.arange(300), method=method)
        np.testing.assert_allclose(table["estimate"], estimate, rtol=1e-9)
        np.testing.assert_allclose(table["se"], standard_error(influence, cluster), rtol=1e-9)
        np.testing.assert_allclose(table["pvalue"], 2 * stats.t.sf(np.abs(table["statistic"]), 6), rtol=1e-9)
        assert (table["n_clusters"] == 7).all()


@pytest.mark.parametrize("method", ["group", "robust"])
def test_jackknife_leaves_out_one_cluster_after_the_other(toy, method):
    cluster = np.minimum(np.arange(300) // 40, 5)
    table = estimate_effects(toy.y, toy.treatment, toy.predicted, "A", method=method, cluster=cluster)
    full, _ = contrast_by_hand(toy, np.arange(300), method=method)
    left = [contrast_by_hand(toy, np.flatnonzero(cluster != j), method=method)[0] for j in range(6)]
    variance = 5 / 6 * ((np.array(left) - full) ** 2).sum(0)
    np.testing.assert_allclose(table["se"], np.sqrt(variance), rtol=1e-9)


def test_equal_clusters_have_one_degree_of_freedom_less_than_there_are(toy):
    treatment = np.tile(["control", "A"], 60)
    table = estimate_effects(toy.y[:120], treatment, method="group", cluster=np.repeat(np.arange(6), 20))
    half = (table["ci_high"] - table["ci_low"]) / 2
    np.testing.assert_allclose(half / table["se"], stats.t.isf(0.025, 5), rtol=1e-9)
    # and are Welch's paired sibling: the t-test of the differences of clusters
    means = toy.y[:120].reshape(6, 10, 2, 5).mean(1)
    paired = stats.ttest_rel(means[:, 1], means[:, 0])
    np.testing.assert_allclose(table["statistic"], paired.statistic, rtol=1e-9)
    np.testing.assert_allclose(table["pvalue"], paired.pvalue, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:Of 1 population")
@pytest.mark.parametrize("kind", ["jackknife", "sandwich"])
def test_nested_clusters_of_equal_size_are_welchs_test_of_their_means(toy, kind):
    """Guides: every cluster has one treatment."""
    treatment = np.repeat(["control", "A"], [100, 80])
    guide = np.repeat(np.arange(9), 20)
    table = estimate_effects(toy.y[:180], treatment, method="group", cluster=guide, cluster_variance=kind)
    means = toy.y[:180].reshape(9, 20, 5).mean(1)
    welch = stats.ttest_ind(means[5:], means[:5], equal_var=False)
    np.testing.assert_allclose(table["statistic"], welch.statistic, rtol=1e-9)
    np.testing.assert_allclose(table["pvalue"], welch.pvalue, rtol=1e-6)
    assert (table["n_clusters"] == 4).all()


def test_nested_clusters_of_other_treatments_do_not_count(toy):
    guide = np.char.add(toy.treatment.astype(str), (np.arange(300) % 6).astype(str))
    alone = toy.treatment != "B"
    table = estimate_effects(toy.y, toy.treatment, perturbations="A", method="group", cluster=guide)
    without = estimate_effects(toy.y, toy.treatment, perturbations="A", method="group", cluster=guide, rows=alone)
    np.testing.assert_allclose(table["se"], without["se"], rtol=1e-9)
    np.testing.assert_allclose(table["pvalue"], without["pvalue"], rtol=1e-9)


def test_unequal_nested_clusters_have_fewer_degrees_of_freedom(toy):
    treatment = np.repeat(["control", "A"], [150, 150])
    even = np.r_[np.arange(150) % 5, 5 + np.arange(150) % 5]
    uneven = np.r_[np.arange(150) % 5, 5 + np.minimum(np.arange(150) // 25, 4) * (np.arange(150) < 100)]
    ratio = {}
    for name, cluster in (("even", even), ("uneven", uneven)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = estimate_effects(toy.y, treatment, method="group", cluster=cluster)
        ratio[name] = ((table["ci_high"] - table["estimate"]) / table["se"]).to_numpy()
    assert (ratio["uneven"] > ratio["even"]).all()


def test_few_clusters(toy):
    two = np.arange(300) % 2
    with pytest.raises(ValueError, match="3 clusters in both arms \\(at most 2\\)"):
        estimate_effects(toy.y, toy.treatment, method="group", cluster=two)
    with pytest.warns(UserWarning, match="Of 2 populations .* 2 have only 3 or 4"):
        estimate_effects(toy.y, toy.treatment, method="group", cluster=np.arange(300) % 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate_effects(toy.y, toy.treatment, method="group", cluster=np.arange(300) % 5)
    # A was given to two of the donors only
    donor = np.arange(300) % 6
    rows = np.flatnonzero((toy.treatment != "A") | (donor < 2))
    with pytest.warns(UserWarning, match="1 have fewer"):
        table = estimate_effects(toy.y, toy.treatment, method="group", cluster=donor, rows=rows)
    a, b = chosen(table, perturbation="A"), chosen(table, perturbation="B")
    assert (a["flag"] == "few clusters").all()
    assert a[["se", "ci_low", "pvalue"]].isna().all(axis=None)
    assert a["estimate"].notna().all()
    assert (b["flag"] == "").all()
    assert b["se"].notna().all()


def test_clusters_need_labels(toy):
    cluster = (np.arange(300) % 5).astype(object)
    with pytest.raises(ValueError, match="5 values"):
        estimate_effects(toy.y, toy.treatment, method="group", cluster=cluster[:5])
    cluster[7] = None
    with pytest.raises(ValueError, match="1 cell have no cluster"):
        estimate_effects(toy.y, toy.treatment, method="group", cluster=cluster)


@pytest.mark.parametrize(("sizes", "kind", "low", "high"), [
    ((30, 30, 30, 30), "jackknife", 0.935, 0.965),
    ((90, 20, 20, 10), "jackknife", 0.92, 0.985),
    ((90, 20, 20, 10), "sandwich", 0.0, 0.9),
])  # fmt: skip
def test_coverage_with_four_guides(sizes, kind, low, high):
    """Guides differ; replicates are columns. The textbook formula fails where one guide dominates."""
    rng = np.random.default_rng(0)
    guides = np.repeat(np.arange(4), sizes)
    controls = 4 + np.arange(200) % 8
    cluster = np.r_[guides, controls]
    treatment = np.where(cluster < 4, "A", "control")
    y = rng.normal(size=(len(cluster), 3000)) + rng.normal(0, 0.5, (12, 3000))[cluster]
    with pytest.warns(UserWarning, match="3 or 4 clusters"):
        table = estimate_effects(y, treatment, method="group", cluster=cluster, cluster_variance=kind)
    covered = ((table["ci_low"] <= 0) & (table["ci_high"] >= 0)).mean()
    assert low < covered < high
    iid = estimate_effects(y, treatment, method="group")
    assert ((iid["ci_low"] <= 0) & (iid["ci_high"] >= 0)).mean() < 0.6


@pytest.mark.parametrize(("n_clusters", "kind", "low", "high"), [
    (3, "jackknife", 0.93, 0.97), (3, "sandwich", 0.9, 0.97), (8, "jackknife", 0.935, 0.965),
])  # fmt: skip
def test_coverage_with_few_donors(n_clusters, kind, low, high):
    """Donors have both arms, in unequal numbers, and respond differently."""
    rng = np.random.default_rng(1)
    n = 80 * n_clusters
    share = np.linspace(1, 2, n_clusters)
    donor = rng.choice(n_clusters, n, p=share / share.sum())
    treated = rng.random(n) < 0.4
    y = rng.normal(size=(n, 3000)) + rng.normal(0, 1.0, (n_clusters, 3000))[donor]
    y += treated[:, None] * rng.normal(0, 0.7, (n_clusters, 3000))[donor]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = estimate_effects(
            y, np.where(treated, "A", "control"), method="group", cluster=donor, cluster_variance=kind
        )
    covered = ((table["ci_low"] <= 0) & (table["ci_high"] >= 0)).mean()
    assert low < covered < high
