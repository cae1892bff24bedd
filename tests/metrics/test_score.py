"""The row of a table: closed forms, degenerate predictions, and the anchors on real data."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scvi_causal.datasets import kang18
from scvi_causal.metrics import METRICS, fit_pca, log1p_normalize, noise_ceiling, score_counterfactual


@pytest.fixture
def screen():
    rng = np.random.default_rng(0)
    baseline, shift = rng.gamma(2, 0.5, 40), np.where(np.arange(40) < 10, 1.5, 0.0)
    draw = lambda n, extra: rng.normal(baseline + extra, 0.5, size=(n, 40))
    return {"observed": draw(300, shift), "a": draw(400, 0), "b": draw(400, 0), "shift": shift, "draw": draw}


def test_right_prediction_scores_as_well_as_a_replicate(screen):
    predicted = screen["draw"](300, screen["shift"])
    pca = fit_pca(screen["a"], 10)
    score = score_counterfactual(screen["observed"], predicted, screen["a"], screen["b"], n_de=10, pca=pca)
    ceiling = noise_ceiling(screen["observed"], screen["a"], screen["b"], n_de=10, pca=pca)
    assert list(score) == list(ceiling) == ["n_observed", "n_predicted", *list(METRICS)[:10]]
    assert score["n_observed"] == score["n_predicted"] == 300
    assert ceiling["n_observed"] == 150
    assert score["r2_de"] > 0.9
    assert score["pearson_effect"] > 0.99
    assert score["mse_ratio"] < 0.02
    assert abs(score["energy"]) < 0.02
    assert abs(score["energy_pca"]) < 0.02
    assert abs(score["mmd2"]) < 0.005
    assert score["variance_ratio"] == pytest.approx(1, abs=0.1)
    for key in ("r2", "r2_de", "pearson_effect", "variance_ratio"):
        assert score[key] == pytest.approx(ceiling[key], abs=0.1)


def test_control_prediction_is_the_zero_of_every_scale(screen):
    score = score_counterfactual(screen["observed"], screen["a"], screen["a"], screen["b"], n_de=10)
    assert score["pearson_effect"] == 0.0
    assert score["mse_ratio"] == pytest.approx(1)
    assert score["r2_de"] < 0
    assert score["energy"] > 1


def test_profiles_get_no_distributional_numbers_and_constant_cells_no_variance(screen):
    mean = screen["a"].mean(0) + screen["shift"]
    score = score_counterfactual(screen["observed"], mean, screen["a"].mean(0), screen["b"].mean(0), n_de=10)
    assert score["pearson_effect"] > 0.99
    assert score["n_predicted"] == 1
    assert all(np.isnan(score[key]) for key in ("energy", "mmd2", "variance_ratio"))
    point = score_counterfactual(screen["observed"], np.tile(mean, (50, 1)), screen["a"], screen["b"], n_de=10)
    assert point["variance_ratio"] == pytest.approx(0, abs=1e-12)
    assert point["energy"] > 1  # the right mean without spread is not the right population


def test_sparse_and_dense_agree_and_distances_can_be_left_out(screen):
    arrays = [np.maximum(screen[key], 0) for key in ("observed", "a", "a", "b")]
    dense = score_counterfactual(*arrays)
    sparse = score_counterfactual(*[sp.csr_matrix(x) for x in arrays])
    assert dense == pytest.approx(sparse, abs=1e-9)
    assert np.isnan(score_counterfactual(*arrays, distances=False)["energy"])


def test_bad_predictions_are_refused(screen):
    good = [screen[key] for key in ("observed", "a", "a", "b")]
    broken = screen["a"].copy()
    broken[0, 0] = np.inf
    with pytest.raises(ValueError, match="predicted: 1 of 40 genes"):
        score_counterfactual(good[0], broken, *good[2:])
    with pytest.raises(ValueError, match="predicted: 39"):
        score_counterfactual(good[0], screen["a"][:, 1:], *good[2:])
    with pytest.raises(ValueError, match="at least 4 observed cells, got 3"):
        noise_ceiling(good[0][:3], *good[2:])


def test_spearman_brown_gives_the_correlation_of_full_data():
    # weak effects, so that the half-data correlation is far from 1; exact controls, so that only the halves are noisy
    rng = np.random.default_rng(0)
    effect = rng.normal(0, 0.1, 2000)
    cells, replicate = rng.normal(effect, 1, size=(2, 60, 2000))
    zero = np.zeros(2000)
    full = score_counterfactual(cells, replicate, zero, zero, distances=False)["pearson_effect"]
    half = noise_ceiling(cells, zero, zero, distances=False)["pearson_effect"]
    corrected = noise_ceiling(cells, zero, zero, distances=False, spearman_brown=True)["pearson_effect"]
    assert half < full - 0.05
    assert corrected == pytest.approx(full, abs=0.03)


def test_anchors_on_kang():
    """Additive baseline, every cell type held out in turn: R2 DE50 0.578, Pearson 0.875, MSE ratio 0.334, ceiling 0.959."""
    adata = kang18()
    x = log1p_normalize(adata.X, adata.obs["library_size_full"])
    perturbed = (adata.obs["perturbation"] == "IFNB").to_numpy()
    cell_type = adata.obs["cell_type"].astype(str).to_numpy()
    types = np.unique(cell_type)
    groups = {(t, p): np.flatnonzero((cell_type == t) & (perturbed == p)) for t in types for p in (True, False)}
    types = [t for t in types if min(groups[t, True].size, groups[t, False].size) > 50]
    effect = {t: np.asarray(x[groups[t, True]].mean(0) - x[groups[t, False]].mean(0)).ravel() for t in types}
    # the anchor's own order of draws, so that its halves are reproduced cell by cell
    rng, scores, replicates = np.random.default_rng(0), [], []
    for t in types:
        a, b = np.array_split(rng.permutation(groups[t, False]), 2)
        s1, s2 = np.array_split(rng.permutation(groups[t, True]), 2)
        additive = np.asarray(x[a].mean(0)).ravel() + np.mean([effect[u] for u in types if u != t], axis=0)
        scores.append(score_counterfactual(x[groups[t, True]], additive, x[a], x[b], n_de=50))
        replicates.append(score_counterfactual(x[s2], x[s1], x[a], x[b], distances=False))
    mean = {key: np.mean([score[key] for score in scores]) for key in ("r2_de", "pearson_effect", "mse_ratio")}
    assert mean == pytest.approx({"r2_de": 0.578, "pearson_effect": 0.875, "mse_ratio": 0.334}, abs=6e-4)
    assert np.mean([r["pearson_effect"] for r in replicates]) == pytest.approx(0.959, abs=6e-4)
