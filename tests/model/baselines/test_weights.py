"""The closed forms, against their definitions and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from scvi_causal.model.baselines._weights import (
    bilinear_solution,
    choose_alpha,
    interpolate_dosage,
    nearest_weights,
    ridge_solution,
)


@pytest.mark.parametrize(
    ("dosage", "known", "expected"),
    [
        (1.0, [1.0], [1.0]),
        (0.25, [1.0], [0.25]),
        (3.0, [1.0], [1.0]),
        (-1.0, [1.0], [0.0]),
        (-0.5, [1.0, -1.0], [0.0, 0.5]),
        (1.5, [2.0, 1.0], [0.5, 0.5]),
        (2.0, [2.0, 1.0], [1.0, 0.0]),
    ],
    ids=["itself", "below", "beyond", "other sign", "negative", "between", "known"],
)
def test_dosages_are_interpolated_and_never_extrapolated(dosage, known, expected):
    np.testing.assert_allclose(interpolate_dosage(dosage, np.array(known)), expected)


@pytest.mark.parametrize(("n", "p"), [(12, 4), (5, 40)], ids=["tall", "wide"])
def test_ridge_is_that_of_scikit_learn(n, p):
    rng = np.random.default_rng(0)
    design, response, new = rng.normal(1, 2, (n, p)), rng.normal(size=(n, 7)), rng.normal(size=(3, p))
    weights = 1 / n + (new - design.mean(0)) @ ridge_solution(design, 0.7)
    np.testing.assert_allclose(weights @ response, Ridge(0.7).fit(design, response).predict(new), atol=1e-9)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-9)


def test_penalty_is_the_best_of_leave_one_out():
    rng = np.random.default_rng(1)
    design = rng.normal(size=(15, 4))
    response = design @ rng.normal(size=(4, 6)) + rng.normal(size=(15, 6))
    centred = design - design.mean(0)
    grid = (centred**2).sum() / 15 * np.logspace(-3, 3, 13)
    errors = [((cross_val_predict(Ridge(a), design, response, cv=LeaveOneOut()) - response) ** 2).mean() for a in grid]
    assert choose_alpha(design, response) == pytest.approx(grid[int(np.argmin(errors))])


def test_penalty_is_large_where_features_say_nothing():
    rng = np.random.default_rng(2)
    design = rng.normal(size=(30, 5))
    said = choose_alpha(design, design @ rng.normal(size=(5, 8)))
    nothing = choose_alpha(design, rng.normal(size=(30, 8)))
    assert said < 0.1
    assert nothing > 100 * said


def test_nearest_neighbours_share_equally():
    design = np.array([[0.0, 0], [1, 0], [0, 3], [5, 5]])
    np.testing.assert_allclose(nearest_weights(np.array([0.1, 0]), design, 2, "euclidean"), [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(nearest_weights(np.array([0.0, 0]), design, 99, "euclidean"), [0.25] * 4)
    np.testing.assert_allclose(nearest_weights(np.array([0, 0.1]), design[1:], 1, "cosine"), [0, 1, 0])


def test_neighbours_at_the_same_distance_share():
    design = np.array([[1.0, 0], [-1, 0], [0, 1], [9, 9]])
    np.testing.assert_allclose(nearest_weights(np.zeros(2), design, 2, "euclidean"), [1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(
        nearest_weights(np.array([1.0, 0]), design, 2, "euclidean"), [0.5, 0, 0.5, 0], atol=1e-12
    )


def test_bilinear_form_is_the_published_formula():
    rng = np.random.default_rng(3)
    n_genes, n_conditions, k, penalty = 9, 6, 3, 0.1
    effects, control = rng.normal(size=(n_conditions, n_genes)), rng.gamma(2, 1, n_genes)
    genes = [np.array([i]) for i in range(n_conditions)]
    found = bilinear_solution(effects, control, genes, [np.ones(1)] * n_conditions, k, penalty)

    # with the columns in full, control first, as it is written in the paper
    bulks = np.column_stack([control, (control + effects).T])
    centred = bulks - bulks.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    A = u[:, :k] * s[:k]
    B = np.column_stack([np.zeros(k), A[:n_conditions].T])
    Y = np.column_stack([np.zeros(n_genes), effects.T])
    m = Y.mean(1, keepdims=True)
    K = (
        np.linalg.inv(A.T @ A + penalty * np.eye(k))
        @ A.T
        @ (Y - m)
        @ B.T
        @ np.linalg.inv(B @ B.T + penalty * np.eye(k))
    )
    b = A[7]
    expected = A @ K @ b + m[:, 0]

    weights = found["solution"] @ found["scores"][7]
    mean = effects.sum(0) / (n_conditions + 1)
    projected = weights @ effects - weights.sum() * mean
    np.testing.assert_allclose(mean + found["scores"] @ (found["project"] @ projected), expected, atol=1e-9)


def test_bilinear_form_with_fewer_conditions_than_factors():
    rng = np.random.default_rng(4)
    found = bilinear_solution(
        rng.normal(size=(2, 5)), np.ones(5), [np.array([0]), np.array([1])], [np.ones(1)] * 2, 10, 0.1
    )
    assert found["scores"].shape == (5, 2)
    assert all(np.isfinite(v).all() for v in found.values())
