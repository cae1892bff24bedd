"""Responses estimated from population means: what training starts from.

The response of a condition is linear in the parameters of :class:`SCCVAEModule` on the scale of log1p expression, so that
population means determine it by ridge regression, at once and without the noise of stochastic gradients.
"""

from __future__ import annotations

import numpy as np


def context_axes(contexts: np.ndarray, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Axes on which a cell's state is read: the principal axes of the contexts' control means.

    Scaled so that the median squared distance of two contexts is one half, to which the penalty of
    :func:`ridge_responses` refers.

    Returns
    -------
    (n_genes,) center and (n_genes, n_axes) axes, zeros where there are fewer contexts than axes.
    """
    center = contexts.mean(0)
    axes = np.zeros((contexts.shape[1], n_axes))
    if n_axes and len(contexts) > 1:
        _, _, directions = np.linalg.svd(contexts - center, full_matrices=False)
        directions = directions[: min(n_axes, len(contexts) - 1)]
        scores = (contexts - center) @ directions.T
        distance = ((scores[:, None] - scores[None]) ** 2).sum(-1)[np.triu_indices(len(scores), 1)]
        axes[:, : len(directions)] = directions.T / np.sqrt(2.0 * max(np.median(distance), 1e-12))
    return center, axes


def ridge_responses(
    dosage: np.ndarray,
    state: np.ndarray,
    effect: np.ndarray,
    n_cells: np.ndarray,
    state_penalty: float = 0.05,
    token_penalty: float = 1e-3,
) -> tuple[np.ndarray, np.ndarray]:
    """Response of each token and how it changes with the state of the context.

    Minimises the weighted squared error of ``dosage @ (response + state · slope)`` plus
    ``state_penalty · |slope|²`` plus ``token_penalty · |response|²``, in its dual form: one system of the size of the rows.

    Parameters
    ----------
    dosage
        (n_rows, n_tokens)
    state
        (n_rows, n_state)
    effect
        (n_rows, n_genes)
    n_cells
        (n_rows,) rows count by the square root of their cells.

    Returns
    -------
    (n_tokens, n_genes) responses and (n_tokens, n_state, n_genes) slopes.
    """
    weight = np.sqrt(n_cells)
    weight = weight / weight.mean()
    shared = dosage @ dosage.T
    kernel = shared / token_penalty + shared * (state @ state.T) / state_penalty
    dual = np.linalg.solve(kernel + np.diag(1.0 / weight), effect)
    response = dosage.T @ dual / token_penalty
    slope = np.einsum("rt,rs,rg->tsg", dosage, state, dual, optimize=True) / state_penalty
    return response, slope


def factorise(response: np.ndarray, slope: np.ndarray, n_programmes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Programmes: the directions in gene space that responses and slopes are made of.

    Returns
    -------
    (n_tokens, n_programmes) activities, (n_tokens, n_state, n_programmes) slopes and (n_programmes, n_genes) loadings; exact
    where ``n_programmes`` is at least the rank.
    """
    n_tokens, n_state = slope.shape[:2]
    stacked = np.concatenate([response, slope.reshape(n_tokens * n_state, response.shape[1])])
    left, values, right = np.linalg.svd(stacked, full_matrices=False)
    kept = min(n_programmes, len(values))
    activity = np.zeros((len(stacked), n_programmes))
    loadings = np.zeros((n_programmes, stacked.shape[1]))
    # both factors get the same size, so that one learning rate suits them
    activity[:, :kept] = left[:, :kept] * np.sqrt(values[:kept])
    loadings[:kept] = np.sqrt(values[:kept])[:, None] * right[:kept]
    return activity[:n_tokens], activity[n_tokens:].reshape(n_tokens, n_state, n_programmes), loadings
