"""Differential expression against scipy, and the metrics on its calls against sklearn and plain loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from scvi_causal.metrics import (
    cell_moments,
    de_auprc,
    de_direction,
    de_overlap,
    de_overlap_at_k,
    differential_expression,
)


@pytest.fixture
def screen():
    """Counts with many ties, so that the corrections of the rank test matter."""
    rng = np.random.default_rng(0)
    rate = np.array([0.1, 0.5, 1.0, 2.0, 3.0, 0.02])
    perturbed = rng.poisson(rate * [1, 3, 1, 0.5, 1, 1], (60, 6))
    return np.log1p(perturbed).astype(np.float32), np.log1p(rng.poisson(rate, (90, 6))).astype(np.float32)


def calls(significant, lfc=None, pvalue=None):
    significant = np.asarray(significant, bool)
    lfc = np.where(significant, 1.0, 0.0) if lfc is None else np.asarray(lfc, float)
    pvalue = np.where(significant, 1e-9, 1.0) if pvalue is None else pvalue
    return pd.DataFrame({"lfc": lfc, "statistic": lfc, "pvalue": pvalue, "padj": pvalue, "significant": significant})


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_t_test_is_that_of_scipy(screen, form):
    cells, controls = screen
    table = differential_expression(form(cells), form(controls), alpha=0.01)
    expected = stats.ttest_ind(cells.astype(float), controls.astype(float), equal_var=False)
    np.testing.assert_allclose(table["statistic"], expected.statistic)
    np.testing.assert_allclose(table["pvalue"], expected.pvalue)
    np.testing.assert_allclose(table["padj"], stats.false_discovery_control(expected.pvalue))
    np.testing.assert_allclose(table["lfc"], cells.mean(0) - controls.mean(0), atol=1e-6)
    assert table["significant"].tolist() == (table["padj"] < 0.01).tolist()
    assert table["significant"].any()
    assert not table["significant"].all()
    assert table.index.tolist() == list(range(6))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_rank_sum_test_is_that_of_scipy(screen, form, monkeypatch):
    from scvi_causal.metrics import _ranks

    cells, controls = screen
    monkeypatch.setattr(_ranks, "_BLOCK", 8 * 300)  # two genes at a time
    table = differential_expression(form(cells), form(controls), method="wilcoxon")
    expected = stats.mannwhitneyu(cells.astype(float), controls.astype(float), axis=0, method="asymptotic")
    np.testing.assert_allclose(table["pvalue"], expected.pvalue)
    above = expected.statistic > 60 * 90 / 2
    assert (np.sign(table["statistic"]) == np.where(above, 1, -1)).all()
    np.testing.assert_allclose(2 * stats.norm.sf(np.abs(table["statistic"])), expected.pvalue)


def test_moments_stand_for_cells(screen):
    cells, controls = screen
    pd.testing.assert_frame_equal(
        differential_expression(cell_moments(cells), controls),
        differential_expression(cells, cell_moments(controls)),
    )


@pytest.mark.parametrize("method", ["t-test", "wilcoxon"])
def test_genes_without_variance_and_identical_populations(screen, method):
    cells, controls = (x.copy() for x in screen)
    cells[:, 0] = controls[:, 0] = 0.1  # nothing
    cells[:, 1], controls[:, 1] = 0.0, 0.7  # gone in every cell
    table = differential_expression(cells, controls, method=method)
    assert table["pvalue"][0] == 1
    assert table["statistic"][0] == 0
    assert table["pvalue"][1] < 1e-10
    assert table["statistic"][1] < -5
    same = differential_expression(cells, cells, method=method)
    assert (same["pvalue"] == 1).all()
    assert not same["significant"].any()
    constant = differential_expression(np.tile(cells.mean(0), (20, 1)), controls, method=method)
    assert constant["pvalue"].notna().all()


def test_single_cells_cannot_be_tested_by_t():
    table = differential_expression(np.ones((1, 3)), np.zeros((9, 3)))
    assert table["pvalue"].isna().all()
    assert table["padj"].isna().all()
    assert not table["significant"].any()
    assert table["lfc"].tolist() == [1, 1, 1]
    assert differential_expression(np.ones((1, 3)), np.eye(9, 3), method="wilcoxon")["pvalue"].notna().all()


def test_calls_hold_the_false_discovery_rate():
    rng = np.random.default_rng(3)
    wrong = [differential_expression(*rng.normal(size=(2, 40, 50)))["significant"].any() for _ in range(400)]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.035)  # without any effect: the chance of a single call


def test_bad_input_is_refused(screen):
    cells, controls = screen
    with pytest.raises(ValueError, match="'t-test' or 'wilcoxon', got 'ttest'"):
        differential_expression(cells, controls, method="ttest")
    with pytest.raises(ValueError, match="cells: one profile"):
        differential_expression(cells[0], controls)
    with pytest.raises(ValueError, match="controls: a rank-sum test needs the cells"):
        differential_expression(cells, cell_moments(controls), method="wilcoxon")
    with pytest.raises(ValueError, match="cells: 6, controls: 5"):
        differential_expression(cells, controls[:, 1:])
    with pytest.raises(ValueError, match="controls: no cells"):
        differential_expression(cells, controls[:0])


def test_direction():
    observed = calls([1, 1, 1, 1, 0], lfc=[1, -1, 2, -2, 5])
    assert de_direction(observed, [0.1, -9, 1, -1, -5]) == 1
    assert de_direction(observed, [-0.1, -9, 1, -1, 5]) == 0.75
    assert de_direction(observed, [-1, 1, -1, 1, 1]) == 0
    assert de_direction(observed, np.zeros(5)) == 0.5
    assert de_direction(observed, np.full(5, 3.0)) == 0.5
    assert de_direction(observed, [1e-9, -1, 1, -1, 0]) == 0.875  # rounding is no direction
    assert np.isnan(de_direction(calls(np.zeros(5)), np.ones(5)))
    with pytest.raises(ValueError, match=r"predicted_effect: expected one number per gene, \(5,\)"):
        de_direction(observed, np.ones(4))
    with pytest.raises(ValueError, match="predicted_effect: 1 of 5 genes are NaN"):
        de_direction(observed, [1, 1, np.nan, 1, 1])


def test_overlap():
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(0)
    truth, guess = rng.random((2, 40)) < 0.4
    assert de_overlap(calls(truth), calls(guess)) == pytest.approx(jaccard_score(truth, guess))
    assert de_overlap(calls(truth), calls(truth)) == 1
    assert de_overlap(calls(truth), calls(np.zeros(40))) == 0
    assert de_overlap(calls(np.zeros(40)), calls(guess)) == 0
    assert np.isnan(de_overlap(calls(np.zeros(40)), calls(np.zeros(40))))
    # a single cell calls nothing because it cannot, not because it says so
    assert np.isnan(de_overlap(calls(truth), calls(np.zeros(40), pvalue=np.full(40, np.nan))))
    # direction does not matter
    assert de_overlap(calls([1, 0], lfc=[1, 0]), calls([1, 0], lfc=[-1, 0])) == 1
    with pytest.raises(ValueError, match="observed_de: 40, predicted_de: 39"):
        de_overlap(calls(truth), calls(guess[1:]))


def test_overlap_at_k():
    rng = np.random.default_rng(1)
    lfc, score = rng.normal(size=(2, 30))
    significant = np.abs(lfc) > 0.5
    observed = calls(significant, lfc=lfc)
    strongest = lambda values, k: set(np.argsort(-values)[:k])
    for k in (1, 5, int(significant.sum())):
        expected = len(strongest(np.abs(lfc), k) & strongest(score, k)) / k
        assert de_overlap_at_k(observed, score, k) == pytest.approx(expected)
    assert de_overlap_at_k(observed, np.abs(lfc), 999) == 1  # never more than there are
    # ties count by chance: a constant score is chance, not the order of the genes
    assert de_overlap_at_k(observed, np.ones(30), 5) == pytest.approx(5 / 30)
    some = calls([1, 1, 0, 0], lfc=[3, 2, 0, 0])
    assert de_overlap_at_k(some, [9, 1, 1, 0], 2) == pytest.approx((1 + 0.5) / 2)
    assert np.isnan(de_overlap_at_k(calls(np.zeros(30)), score))
    with pytest.raises(ValueError, match="at least 1 gene, got 0"):
        de_overlap_at_k(observed, score, 0)


def test_auprc():
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(2)
    truth, score = rng.random(60) < 0.3, rng.normal(size=60).round(1)  # rounded: with ties
    value, prevalence = de_auprc(calls(truth), score)
    assert value == pytest.approx(average_precision_score(truth, score))
    assert prevalence == truth.mean()
    assert de_auprc(calls(truth), np.where(truth, np.inf, 0)) == (1.0, truth.mean())
    assert de_auprc(calls(truth), np.ones(60)) == pytest.approx((truth.mean(), truth.mean()))
    assert de_auprc(calls(np.ones(4)), np.arange(4)) == (1.0, 1.0)
    for nothing in (de_auprc(calls(np.zeros(4)), np.arange(4)), de_auprc(calls([0, 1, 1, 0]), np.full(4, np.nan))):
        assert np.isnan(nothing[0])
    assert nothing[1] == 0.5
    with pytest.raises(ValueError, match="1 of 4 genes are NaN"):
        de_auprc(calls([0, 1, 1, 0]), [1, np.nan, 2, 3])
    with pytest.raises(ValueError, match="predicted_score: expected one number per gene"):
        de_auprc(calls([0, 1, 1, 0]), [1, 2, 3])
