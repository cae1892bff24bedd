"""Perturbation discrimination against a plain loop and the scorer of the Virtual Cell Challenge."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import distance

from scvi_causal.metrics import discrimination

PLAIN = {"cosine": distance.cosine, "l1": distance.cityblock, "l2": distance.euclidean}


def plain(predicted, observed, own, metric, masks):
    """One pair at a time, from the definition."""
    scores = []
    for effect, true, left_out in zip(predicted, own, masks, strict=True):
        d = [PLAIN[metric](effect[~left_out], other[~left_out]) for other in observed]
        k = sum(d[q] < d[true] for q in range(len(d)) if q != true)
        scores.append(1 - k / (len(d) - 1))
    return scores


@pytest.fixture
def effects():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(12, 9))
    own = rng.permutation(12)[:7]
    return observed[own] + rng.normal(0, 1.5, (7, 9)), observed, own


@pytest.mark.parametrize("metric", PLAIN)
def test_definition(effects, metric):
    predicted, observed, own = effects
    got = discrimination(predicted, observed, own, metric=metric)
    np.testing.assert_allclose(got, plain(predicted, observed, own, metric, np.zeros((7, 9), bool)))
    assert 0.5 < got.mean() < 1
    mask = np.arange(9) < 3
    got = discrimination(predicted, observed, own, metric=metric, exclude=mask)
    np.testing.assert_allclose(got, plain(predicted, observed, own, metric, np.tile(mask, (7, 1))))
    rows = np.random.default_rng(1).random((7, 9)) < 0.3
    got = discrimination(predicted, observed, own, metric=metric, exclude=rows)
    np.testing.assert_allclose(got, plain(predicted, observed, own, metric, rows))


@pytest.mark.parametrize("metric", PLAIN)
def test_agrees_with_cell_eval2(effects, metric):
    scorer = pytest.importorskip("cell_eval2.metrics.discrimination")
    _, observed, _ = effects
    predicted = observed + np.random.default_rng(2).normal(0, 2, observed.shape)
    predicted[3] = 0  # no effect: under cosine it ties with all
    genes = np.array([f"g{i}" for i in range(9)])
    names = [f"g{i}" for i in range(6)] + [f"p{i}" for i in range(6)]  # six targets are genes of the panel
    with_control = lambda effects: (np.array([*names, "ctrl"]), np.vstack([effects, np.zeros(9)]))
    expected = scorer.discrimination_score(
        pred_bulk=with_control(predicted),
        real_bulk=with_control(observed),
        control="ctrl",
        distance=metric,
        rank_denominator="n-1",
        genes=genes,
        target_gene_map={name: name if name.startswith("g") else None for name in names},
    )
    got = discrimination(predicted, observed, np.arange(12), metric=metric, exclude=np.isin(genes, names))
    np.testing.assert_allclose(got, [expected[name] for name in names])


@pytest.mark.parametrize("metric", PLAIN)
def test_predictions_without_information_score_one_half(metric):
    rng = np.random.default_rng(3)
    observed = rng.normal(size=(30, 20)) + 1
    constant = np.tile(observed.mean(0), (30, 1))
    assert discrimination(constant, observed, np.arange(30), metric=metric).mean() == pytest.approx(0.5)
    random = [discrimination(rng.normal(size=(30, 20)), observed, np.arange(30), metric=metric) for _ in range(50)]
    assert np.mean(random) == pytest.approx(0.5, abs=0.04)
    # perturbations that all do the same cannot be told apart
    same = np.tile(observed[0], (5, 1)) * (1 + 1e-15 * np.arange(5)[:, None])
    np.testing.assert_allclose(discrimination(rng.normal(size=(5, 20)), same, np.arange(5), metric=metric), 0.5)


@pytest.mark.parametrize("metric", PLAIN)
def test_ends_of_the_scale(metric):
    observed = np.random.default_rng(4).normal(size=(6, 8))
    np.testing.assert_allclose(discrimination(observed, observed, np.arange(6), metric=metric), 1)
    farthest = distance.cdist(observed, observed, PLAIN[metric]).argmax(axis=1)
    np.testing.assert_allclose(discrimination(observed, observed, farthest, metric=metric), 0)


def test_no_direction_ties_with_all():
    observed = np.eye(4)
    np.testing.assert_allclose(discrimination(np.zeros((4, 4)), observed, np.arange(4)), 0.5)
    observed[2] = 0
    np.testing.assert_allclose(discrimination(observed, observed, np.arange(4)), [1, 1, 0.5, 1])


def test_where_there_is_nothing_to_rank(effects):
    predicted, observed, own = effects
    assert np.isnan(discrimination(predicted[:1], observed[:1], [0])).all()
    assert np.isnan(discrimination(predicted, observed, own, exclude=np.ones(9, bool))).all()
    rows = np.zeros((7, 9), bool)
    rows[2] = True
    assert np.flatnonzero(np.isnan(discrimination(predicted, observed, own, exclude=rows))).tolist() == [2]
    assert discrimination(np.empty((0, 9)), observed, []).shape == (0,)


def test_bad_input_is_refused(effects):
    predicted, observed, own = effects
    with pytest.raises(ValueError, match="'cosine', 'l1' or 'l2', got 'euclid'"):
        discrimination(predicted, observed, own, metric="euclid")
    with pytest.raises(ValueError, match="predicted has 8 genes and observed 9"):
        discrimination(predicted[:, 1:], observed, own)
    with pytest.raises(ValueError, match=r"own: 1 of 7 are no row of observed \(0 to 11\): \[12\]"):
        discrimination(predicted, observed, [0, 1, 2, 3, 4, 5, 12])
    with pytest.raises(ValueError, match="own: expected 7 row indices, got float64"):
        discrimination(predicted, observed, np.ones(7))
    with pytest.raises(ValueError, match=r"exclude: expected a boolean mask of shape \(9,\) or \(7, 9\), got int64"):
        discrimination(predicted, observed, own, exclude=np.arange(3))
    with pytest.raises(ValueError, match=r"observed: 1 of 12 effects .* row 4"):
        discrimination(predicted, np.where(np.arange(12)[:, None] == 4, np.nan, observed), own)
    with pytest.raises(ValueError, match=r"predicted: expected a \(perturbations, genes\) matrix"):
        discrimination(predicted[0], observed, own)
