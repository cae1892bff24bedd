"""The streamed table against influence values cell by cell, Welch's test, and plain means."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scvi_causal.effects import StratumPredictions, _collect, adjust_pvalues, estimate_effects, marginal_mean

METHODS = ["group", "robust", "tuned"]


def by_hand(toy, rows, target, method, contrast="control"):
    """Estimate and standard error from influence values, each arm's share of the variance by its n - 1."""
    labels = toy.treatment[rows]
    arms = {target: 1.0} | ({contrast: -1.0} if contrast else {})
    estimate, influence = 0.0, 0.0
    for name, sign in arms.items():
        found = marginal_mean(toy.y[rows], toy.predicted[name][rows], labels == name, method=method)
        estimate, influence = estimate + sign * found.estimate, influence + sign * found.influence
    variance = 0.0
    for mask in [*(labels == name for name in arms), ~np.isin(labels, list(arms))]:
        part, n = influence[mask], mask.sum()
        centred = ((part - part.mean(0)) ** 2).sum(0)
        variance = variance + centred * n / (n - 1) + n * part.mean(0) ** 2
    return estimate, np.sqrt(variance) / len(rows)


def chosen(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    return table


@pytest.mark.parametrize("contrast", ["control", None])
def test_streamed_sums_give_the_definition(toy, contrast, monkeypatch):
    monkeypatch.setattr(_collect, "CHUNK", 17)
    table = estimate_effects(
        toy.y, toy.treatment, toy.predicted, ["A", "B"], contrast=contrast, method=METHODS, group=toy.group
    )
    assert len(table) == 2 * 2 * 3 * 5
    for group in ("x", "z"):
        for target in ("A", "B"):
            for method in METHODS:
                found = chosen(table, group=group, perturbation=target, method=method)
                estimate, se = by_hand(toy, toy.rows(group), target, method, contrast)
                np.testing.assert_allclose(found["estimate"], estimate, rtol=1e-9, atol=1e-12)
                np.testing.assert_allclose(found["se"], se, rtol=1e-9)
                means = found["mean"] - (0.0 if contrast is None else found["mean_contrast"])
                np.testing.assert_allclose(means, estimate, rtol=1e-9, atol=1e-12)


def test_strata_are_predictions_cell_by_cell(toy):
    rng = np.random.default_rng(3)
    means = {name: rng.normal(size=(3, 5)) for name in ("control", "A", "B")}
    strata = StratumPredictions(toy.stratum, means)
    cells = {name: table[toy.stratum] for name, table in means.items()}
    for kwargs in ({}, {"group": toy.group}, {"cluster": np.arange(300) % 12}, {"contrast": None}):
        options = {"method": [*METHODS, "mean"], **kwargs}
        one, other = (estimate_effects(toy.y, toy.treatment, p, ["B", "A"], **options) for p in (strata, cells))
        pd.testing.assert_frame_equal(one, other, rtol=1e-8)


def test_group_means_are_welchs_test(toy):
    table = estimate_effects(toy.y, toy.treatment, method="group")
    assert table["perturbation"].unique().tolist() == ["A", "B"]
    for target in ("A", "B"):
        found = chosen(table, perturbation=target)
        a, c = toy.y[toy.treatment == target], toy.y[toy.treatment == "control"]
        welch = stats.ttest_ind(a, c, equal_var=False)
        np.testing.assert_allclose(found["statistic"], welch.statistic, rtol=1e-9)
        np.testing.assert_allclose(found["pvalue"], welch.pvalue, rtol=1e-7)
        interval = welch.confidence_interval(0.95)
        np.testing.assert_allclose(found["ci_low"], interval.low, rtol=1e-8)
        np.testing.assert_allclose(found["ci_high"], interval.high, rtol=1e-8)
    np.testing.assert_allclose(table["padj"], stats.false_discovery_control(table["pvalue"]))


def test_storage_and_reading_change_nothing(toy):
    expected = estimate_effects(toy.y, toy.treatment, toy.predicted, group=toy.group)
    for y in (sparse.csr_matrix(toy.y), sparse.csc_matrix(toy.y), lambda rows: toy.y[rows]):
        found = estimate_effects(y, toy.treatment, toy.predicted, group=toy.group)
        pd.testing.assert_frame_equal(found, expected, rtol=1e-10)

    def predict(rows, treatments):
        return (toy.predicted[name][rows] for name in treatments)

    found = estimate_effects(toy.y, toy.treatment, predict, group=pd.DataFrame({"group": toy.group}))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-10)


def test_rows_are_the_cells_that_count(toy):
    rows = np.flatnonzero(np.random.default_rng(5).random(300) < 0.6)
    some = estimate_effects(toy.y, toy.treatment, toy.predicted, rows=rows)
    cut = {name: f[rows] for name, f in toy.predicted.items()}
    pd.testing.assert_frame_equal(some, estimate_effects(toy.y[rows], toy.treatment[rows], cut), rtol=1e-10)
    mask = np.isin(np.arange(300), rows)
    pd.testing.assert_frame_equal(some, estimate_effects(toy.y, toy.treatment, toy.predicted, rows=mask))


def test_contrast_with_itself_is_exactly_nothing(toy):
    table = estimate_effects(toy.y, toy.treatment, toy.predicted, ["control", "A"], method=METHODS, simultaneous=True)
    same = chosen(table, perturbation="control")
    assert (same[["estimate", "se", "ci_low", "ci_high", "band_low", "band_high", "statistic"]] == 0).all(axis=None)
    assert (same["pvalue"] == 1).all()


def test_effects_have_opposite_signs_the_other_way_round(toy):
    there = estimate_effects(toy.y, toy.treatment, toy.predicted, "A", contrast="B")
    back = estimate_effects(toy.y, toy.treatment, toy.predicted, "B", contrast="A")
    np.testing.assert_allclose(there["estimate"], -back["estimate"], rtol=1e-10)
    np.testing.assert_allclose(there["se"], back["se"], rtol=1e-10)
    np.testing.assert_allclose(there["balance_z"], -back["balance_z"], rtol=1e-8)


def test_what_was_never_observed_is_the_models_word(toy):
    absent = (toy.treatment == "A") & (toy.group == "x")
    rows = np.flatnonzero(~absent)
    table = estimate_effects(
        toy.y, toy.treatment, toy.predicted, ["A", "B"], method=["robust", "group", "mean"], group=toy.group, rows=rows
    )
    here = rows[toy.group[rows] == "x"]
    robust = chosen(table, group="x", perturbation="A", method="robust")
    assert (robust["flag"] == "model only").all()
    assert (robust["n_perturbed"] == 0).all()
    plug_in = (toy.predicted["A"] - toy.predicted["control"])[here].mean(0)
    np.testing.assert_allclose(robust["estimate"], plug_in, rtol=1e-10)
    assert robust[["se", "ci_low", "ci_high", "pvalue", "padj", "balance_z"]].isna().all(axis=None)
    group = chosen(table, group="x", perturbation="A", method="group")
    assert group["estimate"].isna().all()
    assert (group["flag"] == "not observed").all()
    assert (chosen(table, method="mean")["flag"] == "model only").all()
    assert chosen(table, method="mean")["se"].isna().all()
    rest = table[(table["group"] == "z") & (table["method"] != "mean")]
    assert not rest["flag"].str.contains("model only").any()
    assert rest["pvalue"].notna().all()


def test_a_contrast_that_was_never_observed(toy):
    rows = np.flatnonzero(toy.treatment != "control")
    table = estimate_effects(toy.y, toy.treatment, toy.predicted, "A", rows=rows)
    assert (table["flag"] == "model only").all()
    assert (table["n_contrast"] == 0).all()


def test_few_cells_are_flagged(toy):
    for n, expected in ((12, ""), (6, "few cells")):
        keep = np.r_[np.flatnonzero(toy.treatment == "A")[:n], np.flatnonzero(toy.treatment == "control")]
        table = estimate_effects(toy.y, toy.treatment, method="group", perturbations="A", rows=keep)
        assert (table["flag"] == expected).all()
    keep = np.r_[np.flatnonzero(toy.treatment == "A")[:1], np.flatnonzero(toy.treatment == "control")]
    one = estimate_effects(toy.y, toy.treatment, toy.predicted, "A", rows=keep)
    assert np.isfinite(one["estimate"]).all()
    assert one["se"].isna().all()


def test_genes_without_variance():
    treatment = np.repeat(["control", "A"], 20)
    y = np.zeros((40, 3))
    y[:, 1], y[:20, 2], y[20:, 2] = 3.3, 0.4, 1.7
    for method, predicted in (("group", None), ("robust", {"A": y + 0.1, "control": y - 0.1})):
        table = estimate_effects(y, treatment, predicted, method=method)
        np.testing.assert_allclose(table["se"], 0, atol=1e-12)
        assert table["pvalue"].tolist()[:2] == [1.0, 1.0]
        assert table["pvalue"][2] == (0.0 if method == "group" else 1.0)


def sparse_genes(rng, n, expected, n_genes=3000, fold=1.0):
    """A and control, of whose cells few express; as many of A's as expected, on average."""
    treatment = np.repeat(["A", "control"], [n, 800])
    share = np.where(treatment == "A", fold, 1.0) * expected / n
    return treatment, (rng.random((n + 800, n_genes)) < share[:, None]) * np.log1p(rng.gamma(2, 2, (n + 800, n_genes)))


@pytest.mark.parametrize("cluster", [False, True])
@pytest.mark.parametrize("expected", [1, 4, 9])
def test_genes_that_few_cells_express_are_not_certain(expected, cluster):
    """With Welch's intervals alone 62, 88 and 94 % contain the truth, and every gene that no cell of A expresses is called."""
    rng = np.random.default_rng(expected)
    treatment, y = sparse_genes(rng, 50, expected)
    donor = rng.permutation(len(treatment)) % 12 if cluster else None
    table = estimate_effects(y, treatment, method="group", cluster=donor)
    covered = (table["ci_low"] <= 0) & (table["ci_high"] >= 0)
    assert covered.mean() > 0.94
    assert (table["padj"] < 0.05).mean() < 0.001
    if expected == 1:
        assert covered[(y[:50] == 0).all(0)].all()
    # four times as many are found
    treatment, y = sparse_genes(rng, 50, expected, fold=4.0)
    table = estimate_effects(y, treatment, method="group", cluster=donor)
    truth = 3 * expected / 50 * np.log1p(rng.gamma(2, 2, 100_000)).mean()
    assert 0.93 < ((table["ci_low"] <= truth) & (table["ci_high"] >= truth)).mean()
    assert (table["pvalue"] < 0.05).mean() > (0.85 if expected > 1 else 0.0)


def test_the_rule_for_rare_genes_by_hand_and_where_it_ends():
    rng = np.random.default_rng(0)
    treatment = np.repeat(["A", "control"], [40, 300])
    y = np.zeros((340, 3))
    y[:9, 0], y[:10, 1], y[:, 2] = 2.0, 2.0, rng.normal(size=340)
    y[40:140, :2] = 3.0
    table = estimate_effects(y, treatment, method="group")
    for gene, pseudo in ((0, 2), (1, 0), (2, 0)):  # nine cells express, ten do, all do
        a, c = y[:40, gene], y[40:, gene]
        typical = (y[:, gene] ** 2).sum() / (y[:, gene] != 0).sum()
        parts = [(((a - a.mean()) ** 2).sum() + pseudo * typical) / 39 / 40, c.var(ddof=1) / 300]
        assert table["se"][gene] == pytest.approx(np.sqrt(sum(parts)))
        df = sum(parts) ** 2 / (parts[0] ** 2 / (2 * (9 + 2) if pseudo else 39) + parts[1] ** 2 / 299)
        half = table["ci_high"][gene] - table["estimate"][gene]
        assert half == pytest.approx(stats.t.isf(0.025, df) * table["se"][gene])
    for form in (sparse.csr_matrix(y), sparse.csr_array(y)):
        pd.testing.assert_frame_equal(table, estimate_effects(form, treatment, method="group"), rtol=1e-10)
    # a gene that nobody expresses has no effect, and no variance either
    nobody = estimate_effects(np.zeros((340, 1)), treatment, method="group")
    assert nobody[["se", "estimate", "pvalue"]].iloc[0].tolist() == [0.0, 0.0, 1.0]


def test_false_discovery_rates_are_per_method_and_skip_what_is_missing():
    p = np.array([0.01, np.nan, 0.04, 0.5])
    np.testing.assert_allclose(adjust_pvalues(p)[[0, 2, 3]], stats.false_discovery_control([0.01, 0.04, 0.5]))
    assert np.isnan(adjust_pvalues(p)[1])
    assert np.isnan(adjust_pvalues([np.nan])).all()


def test_false_discovery_rates_of_a_method_do_not_depend_on_others(toy):
    alone = estimate_effects(toy.y, toy.treatment, toy.predicted, method="robust")
    among = estimate_effects(toy.y, toy.treatment, toy.predicted, method=["group", "robust"])
    np.testing.assert_allclose(chosen(among, method="robust")["padj"], alone["padj"], rtol=1e-12)


def test_groups_are_the_columns_of_a_frame(toy):
    frame = pd.DataFrame({"type": toy.group, "batch": pd.Categorical(toy.stratum, categories=range(9))})
    table = estimate_effects(toy.y, toy.treatment, method="group", group=frame, genes=list("abcde"))
    assert table.columns.tolist()[:6] == ["perturbation", "contrast", "type", "batch", "gene", "method"]
    assert len(table) == 2 * 6 * 5
    assert table["n_cells"].groupby([table["type"], table["batch"]]).first().sum() == 300
    here = chosen(table, type="z", batch=2, perturbation="A", gene="b")
    mask = (toy.group == "z") & (toy.stratum == 2)
    expected = toy.y[mask & (toy.treatment == "A"), 1].mean() - toy.y[mask & (toy.treatment == "control"), 1].mean()
    assert here["estimate"].item() == pytest.approx(expected)


def test_refusals(toy):
    ask = lambda **kwargs: estimate_effects(**{"y": toy.y, "treatment": toy.treatment, "method": "group", **kwargs})
    for kwargs, text in (
        ({"method": "robust"}, "needs predictions"),
        ({"method": "robuts", "predicted": toy.predicted}, "Did you mean 'robust'"),
        ({"level": 95}, "between 0 and 1"),
        ({"cluster_variance": "bootstrap", "cluster": toy.group}, "'bootstrap' is not one of"),
        ({"treatment": toy.treatment[:5]}, "5 cells"),
        ({"y": np.where(toy.y > 3, np.nan, toy.y)}, "NaN"),
        ({"perturbations": []}, "empty"),
        ({"genes": ["a"]}, "1 names"),
        ({"group": toy.group[:9]}, "9 rows"),
        ({"group": pd.DataFrame({"gene": toy.group})}, "columns 'gene'"),
        ({"group": np.where(toy.group == "x", None, toy.group)}, "have no group"),
        ({"rows": [0, 0, 1]}, "twice"),
        ({"rows": []}, "no cell"),
        ({"rows": np.flatnonzero(toy.treatment == "control")}, "no effect to estimate"),
        ({"method": "robust", "predicted": {"A": toy.predicted["A"]}}, "nothing for 'control'"),
        ({"method": "robust", "predicted": {t: f[:, :2] for t, f in toy.predicted.items()}}, "has the shape"),
        ({"method": "robust", "predicted": {t: f * np.nan for t, f in toy.predicted.items()}}, "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=text):
            ask(**kwargs)


def test_nothing_of_the_size_of_the_cells_is_kept():
    """Peak memory against one dense copy of the cells."""
    import tracemalloc

    rng = np.random.default_rng(0)
    n_cells, n_genes = 40_000, 100
    y = sparse.random(n_cells, n_genes, 0.05, format="csr", random_state=rng)
    treatment = rng.choice(["control", "A"], n_cells)
    predict = lambda rows, names: (np.full((len(rows), n_genes), float(len(name))) for name in names)
    tracemalloc.start()
    estimate_effects(y, treatment, predict, cluster=rng.integers(0, 5, n_cells))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * n_cells * n_genes * 8
