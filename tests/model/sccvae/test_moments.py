"""What is estimated from population means, against brute force."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scvi_causal import SCCVAE
from scvi_causal.model.base._condition_effects import condition_effects, denoise
from scvi_causal.model.base._ridge import left_out_residuals, ridge_on_features
from scvi_causal.model.sccvae._moments import (
    context_axes,
    factorise,
    ridge_responses,
)

# ---------------------------------------------------------------------- effects of conditions


def effects_of(x, obs, log, **setup):
    obs = pd.DataFrame(obs, index=[f"c{i}" for i in range(len(x))])
    genes = pd.DataFrame(index=[f"g{i}" for i in range(x.shape[1])])
    adata = ad.AnnData(csr_matrix(x.astype(np.float32)), obs=obs, var=genes)
    SCCVAE.setup_anndata(adata, **setup)
    manager = SCCVAE(adata, data_type="counts" if log else "continuous").adata_manager
    return condition_effects(manager, np.arange(len(x)), x.shape[1], log)


def test_effects_of_counts_are_log_ratios_of_means():
    rng = np.random.default_rng(0)
    x = rng.poisson(4, (60, 5)) + 1.0
    labels = np.resize(["control", "A", "B", "A+B"], 60)
    found = effects_of(x, {"perturbation": labels}, log=True)
    per_cell = x * (1e4 / x.sum(1, keepdims=True))
    mean = {label: per_cell[labels == label].mean(0) for label in set(labels)}
    variance = {label: per_cell[labels == label].var(0, ddof=1) / 15 for label in set(labels)}
    names = {(1, 0): "A", (0, 1): "B", (1, 1): "A+B"}
    assert {tuple(row) for row in found.dosage.astype(int)} == set(names)
    for row, dosage in enumerate(found.dosage.astype(int)):
        label = names[tuple(dosage)]
        np.testing.assert_allclose(found.effect[row], np.log1p(mean[label]) - np.log1p(mean["control"]), rtol=1e-4)
        larger = np.maximum(mean[label], mean["control"])
        noise = (variance[label] + variance["control"]) / (1 + larger) ** 2
        np.testing.assert_allclose(found.variance[row], noise, rtol=1e-3)
        np.testing.assert_allclose(found.noise.own[row], variance[label] / (1 + larger) ** 2, rtol=1e-3)
        np.testing.assert_allclose(found.control[row], mean["control"], rtol=1e-5)
    assert found.n_cells.tolist() == [15, 15, 15]
    np.testing.assert_array_equal(found.noise.loading, 1)
    np.testing.assert_allclose(found.noise.shared[0], variance["control"] / (1 + mean["control"]) ** 2, rtol=1e-3)
    np.testing.assert_allclose(found.contexts, np.log1p(per_cell[labels == "control"]).mean(0)[None], rtol=1e-5)


def test_effects_are_taken_within_batches():
    """Most perturbed cells are in the bright batch, most controls in the dark one."""
    labels = np.repeat(["control", "A", "control", "A"], [30, 10, 10, 30])
    batch = np.repeat(["dark", "bright"], 40)
    x = 1.5 + 7.0 * (batch == "bright")[:, None] + (labels == "A")[:, None] * np.array([[1.0, -2.0, 0.0]])
    found = effects_of(x, {"perturbation": labels, "batch": batch}, log=False, batch_key="batch")
    np.testing.assert_allclose(found.effect, [[1, -2, 0]], atol=1e-5)
    assert found.n_cells.tolist() == [40]


def test_effects_of_contexts_stay_apart():
    labels = np.tile(["control", "A"], 20)
    kind = np.repeat(["one", "two"], 20)
    size = np.where(kind == "one", 1.0, 3.0)
    x = 0.5 + (labels == "A")[:, None] * size[:, None] * np.ones((1, 3)) + (kind == "two")[:, None]
    found = effects_of(x, {"perturbation": labels, "kind": kind}, log=False, categorical_covariate_keys=["kind"])
    order = np.argsort(found.context)
    np.testing.assert_allclose(found.effect[order], [[1, 1, 1], [3, 3, 3]], atol=1e-5)
    np.testing.assert_allclose(found.contexts, [[0.5] * 3, [1.5] * 3], atol=1e-5)


def test_noise_of_effects_is_taken_apart():
    """Own cells, and controls that rows share; the third kind has no controls and borrows all others."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", "A", "B", "control", "A", "A"], 20)
    batch = np.repeat(["one", "one", "one", "two", "two", "two"], 20)
    kind = np.repeat(["x", "x", "x", "x", "x", "y"], 20)
    x = 0.5 + rng.gamma(2, 1, (120, 4))
    setup = {"batch_key": "batch", "categorical_covariate_keys": ["kind"]}
    found = effects_of(x, {"perturbation": labels, "batch": batch, "kind": kind}, log=False, **setup)
    variance = np.array([x[i : i + 20].var(0, ddof=1) / 20 for i in range(0, 120, 20)])
    rows = {(tuple(d), int(c)): r for r, (d, c) in enumerate(zip(found.dosage.astype(int), found.context, strict=True))}
    order = [rows[(1, 0), 0], rows[(0, 1), 0], rows[(1, 0), 1]]
    np.testing.assert_allclose(
        found.noise.own[order], [variance[[1, 4]].sum(0) / 4, variance[2], variance[5]], rtol=1e-4
    )
    np.testing.assert_allclose(found.noise.shared, variance[[0, 3]], rtol=1e-4)
    np.testing.assert_allclose(found.noise.loading[order], [[0.5, 0.5], [1, 0], [0.5, 0.5]])
    with_controls = order[:2]
    np.testing.assert_allclose(
        found.noise.of(csr_matrix(np.eye(3)))[with_controls], found.variance[with_controls], rtol=1e-6
    )


# ---------------------------------------------------------------------- axes of the state


def test_axes_of_contexts():
    contexts = np.random.default_rng(0).normal(size=(5, 30))
    center, axes = context_axes(contexts, 4)
    np.testing.assert_allclose(center, contexts.mean(0))
    scores = (contexts - center) @ axes
    inner = axes.T @ axes
    np.testing.assert_allclose(inner, np.eye(4) * inner[0, 0], atol=1e-12)
    squared = ((scores[:, None] - scores[None]) ** 2).sum(-1)[np.triu_indices(5, 1)]
    assert np.median(squared) == pytest.approx(0.5)
    # all axes there are: nothing of the differences is lost
    full = ((contexts[:, None] - contexts[None]) ** 2).sum(-1)[np.triu_indices(5, 1)]
    np.testing.assert_allclose(squared / full, (squared / full)[0])


def test_axes_that_the_contexts_do_not_span_are_zero():
    contexts = np.random.default_rng(0).normal(size=(2, 30))
    _, axes = context_axes(contexts, 3)
    assert (axes[:, 1:] == 0).all()
    assert (axes[:, 0] != 0).any()
    _, none = context_axes(contexts[:1], 2)
    assert (none == 0).all()
    assert context_axes(contexts, 0)[1].shape == (30, 0)


# ---------------------------------------------------------------------- responses


def test_responses_are_those_of_brute_force_ridge():
    rng = np.random.default_rng(0)
    dosage = rng.integers(0, 2, (14, 4)) * rng.uniform(0.5, 2, (14, 4))
    dosage[:, 3] = 0  # a token that no cell has
    state, effect, n_cells = rng.normal(size=(14, 2)), rng.normal(size=(14, 6)), rng.integers(5, 200, 14)
    response, slope = ridge_responses(dosage, state, effect, n_cells, state_penalty=0.3, token_penalty=0.02)
    design = np.hstack([dosage, (dosage[:, :, None] * state[:, None, :]).reshape(14, 8)])
    weight = np.sqrt(n_cells) / np.sqrt(n_cells).mean()
    penalty = np.repeat([0.02, 0.3], [4, 8])
    solved = np.linalg.solve(
        design.T @ (weight[:, None] * design) + np.diag(penalty), design.T @ (weight[:, None] * effect)
    )
    np.testing.assert_allclose(response, solved[:4], atol=1e-10)
    np.testing.assert_allclose(slope, solved[4:].reshape(4, 2, 6), atol=1e-10)
    assert (response[3] == 0).all()
    assert (slope[3] == 0).all()


def test_responses_of_one_context_add_up():
    single = np.random.default_rng(0).normal(size=(3, 8))
    dosage = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 2, 1]], dtype=float)
    response, slope = ridge_responses(dosage, np.zeros((5, 0)), dosage @ single, np.full(5, 50))
    np.testing.assert_allclose(response, single, rtol=5e-3, atol=5e-3)
    assert slope.shape == (3, 0, 8)


# ---------------------------------------------------------------------- noise


def test_noise_alone_is_removed_completely():
    rng = np.random.default_rng(0)
    for shape in [(20, 500), (100, 80)]:
        variance = rng.gamma(3, 1, (shape[0], 1)) * rng.gamma(3, 1, shape[1])  # of rows and of genes
        noise = rng.normal(size=shape) * np.sqrt(variance)
        assert np.abs(denoise(noise, variance)).max() < 0.25 * np.abs(noise).max()
        assert np.mean(denoise(noise, variance) ** 2) < 0.02 * np.mean(noise**2)


def test_strong_effects_are_kept_and_come_out_cleaner():
    rng = np.random.default_rng(0)
    true = 3 * rng.normal(size=(30, 2)) @ rng.normal(size=(2, 400))
    variance = rng.gamma(3, 0.3, (1, 400)) * np.ones((30, 1))
    noisy = true + rng.normal(size=true.shape) * np.sqrt(variance)
    clean = denoise(noisy, variance)
    assert np.mean((clean - true) ** 2) < 0.2 * np.mean((noisy - true) ** 2)
    assert np.corrcoef(clean.ravel(), true.ravel())[0, 1] > 0.99
    assert np.linalg.matrix_rank(clean) == 2


def test_without_noise_nothing_changes():
    effect = np.random.default_rng(0).normal(size=(6, 20))
    np.testing.assert_allclose(denoise(effect, np.full((6, 20), 1e-12)), effect, atol=1e-4)


# ---------------------------------------------------------------------- features


def refit_errors(features, response, penalty) -> np.ndarray:
    """(tokens,) squared error of each token when it is left out of everything, its mean and center too."""
    errors = []
    for left_out in range(len(features)):
        keep = np.arange(len(features)) != left_out
        predicted = response[keep].mean(0)
        if np.isfinite(penalty):
            center, coefficients, _ = ridge_on_features(features[keep], response[keep], penalty)
            predicted = predicted + (features[left_out] - center) @ coefficients
        errors.append(((response[left_out] - predicted) ** 2).sum())
    return np.array(errors)


def test_features_with_a_penalty_are_brute_force_ridge():
    rng = np.random.default_rng(0)
    features, response = rng.normal(size=(9, 20)), rng.normal(size=(9, 4))
    center, coefficients, penalty = ridge_on_features(features, response, 0.7)
    x, y = features - features.mean(0), response - response.mean(0)
    np.testing.assert_allclose(coefficients, np.linalg.solve(x.T @ x + 0.7 * np.eye(20), x.T @ y), atol=1e-12)
    np.testing.assert_allclose(center, features.mean(0))
    assert penalty == 0.7


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0, np.inf])
@pytest.mark.parametrize("shape", [(9, 20), (15, 3)])
def test_left_out_errors_are_those_of_refits(shape, penalty):
    rng = np.random.default_rng(0)
    features, response = 2 + rng.normal(size=shape), rng.normal(size=(shape[0], 4))
    found = (left_out_residuals(features, response, penalty) ** 2).sum(1)
    np.testing.assert_allclose(found, refit_errors(features, response, penalty), rtol=1e-8)


@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
def test_the_penalty_predicts_tokens_that_are_left_out(noise):
    """Held against refits without each token; within one standard error of the least there may be other reasons to choose."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(25, 6))
    response = features @ rng.normal(size=(6, 5)) + noise * rng.normal(size=(25, 5))
    _, _, chosen = ridge_on_features(features, response)
    scale = ((features - features.mean(0)) ** 2).sum() / 25
    grid = [np.inf, *(scale * np.logspace(-3, 2, 31))]
    errors = np.array([refit_errors(features, response, penalty) for penalty in grid])
    best = errors[errors.sum(1).argmin()]
    excess = refit_errors(features, response, chosen) - best
    assert excess.mean() <= 1.05 * excess.std() / np.sqrt(25)
    assert np.isfinite(chosen)
    assert refit_errors(features, response, chosen).sum() < errors[0].sum()


@pytest.mark.parametrize("features", [np.eye(12), np.ones((12, 3)), np.zeros((12, 0))], ids=["own", "equal", "none"])
def test_features_that_say_nothing_predict_the_mean(features):
    response = np.random.default_rng(0).normal(size=(12, 5))
    _, coefficients, penalty = ridge_on_features(features, response)
    assert penalty == np.inf
    assert coefficients.shape == (features.shape[1], 5)
    assert (coefficients == 0).all()


def test_informative_features_transfer():
    rng = np.random.default_rng(0)
    features, true = rng.normal(size=(60, 4)), rng.normal(size=(4, 10))
    response = features @ true + 0.1 * rng.normal(size=(60, 10))
    center, coefficients, _ = ridge_on_features(features[:40], response[:40])
    predicted = response[:40].mean(0) + (features[40:] - center) @ coefficients
    assert np.corrcoef(predicted.ravel(), (features[40:] @ true).ravel())[0, 1] > 0.98


# ---------------------------------------------------------------------- programmes


def test_programmes_are_exact_at_full_rank():
    rng = np.random.default_rng(0)
    response, slope = rng.normal(size=(4, 30)), rng.normal(size=(4, 2, 30))
    for n_programmes in (12, 20):
        activity, slopes, loadings = factorise(response, slope, n_programmes)
        assert activity.shape == (4, n_programmes)
        assert slopes.shape == (4, 2, n_programmes)
        assert loadings.shape == (n_programmes, 30)
        np.testing.assert_allclose(activity @ loadings, response, atol=1e-12)
        np.testing.assert_allclose(slopes @ loadings, slope, atol=1e-12)


def test_fewer_programmes_keep_what_is_largest():
    rng = np.random.default_rng(0)
    response, slope = rng.normal(size=(6, 30)), np.zeros((6, 0, 30))
    activity, slopes, loadings = factorise(response, slope, 2)
    tail = np.linalg.svd(response, compute_uv=False)[2:]
    assert ((activity @ loadings - response) ** 2).sum() == pytest.approx((tail**2).sum())
    assert slopes.shape == (6, 0, 2)
