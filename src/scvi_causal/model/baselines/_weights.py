"""How much each training condition counts in the prediction of a target: closed forms on plain arrays."""

from __future__ import annotations

import numpy as np


def interpolate_dosage(dosage: float, known: np.ndarray) -> np.ndarray:
    """Weights of the dosages at which a token was seen, for its effect at another.

    Linear between neighbours, with no effect at dosage 0, and constant beyond the largest of either sign: an effect is never
    extrapolated. With one known dosage of 1, half the dosage has half the effect and twice the dosage the same effect.

    Parameters
    ----------
    dosage
        Dosage asked for.
    known
        (n,) distinct dosages other than 0.

    Returns
    -------
    (n,) weights

    Examples
    --------
    >>> interpolate_dosage(0.5, np.array([1.0])).tolist(), interpolate_dosage(1.5, np.array([1.0, 2.0])).tolist()
    ([0.5], [0.5, 0.5])
    """
    points = np.append(known, 0.0)
    order = np.argsort(points)
    return np.array([np.interp(dosage, points[order], np.eye(len(points))[i][order]) for i in range(len(known))])


def ridge_solution(design: np.ndarray, alpha: float) -> np.ndarray:
    """Matrix ``S`` (n_features, n_conditions) of ridge regression with an intercept.

    The prediction for features ``x`` weighs the training responses by ``1/n + (x - mean) S``, with
    ``S = Xcᵀ(Xc Xcᵀ + alpha I)⁻¹`` and ``Xc`` the centred design. The dual form costs the cube of the number of conditions,
    however many features there are.

    Parameters
    ----------
    design
        (n_conditions, n_features)
    alpha
        Penalty, as in scikit-learn.
    """
    centred = design - design.mean(0)
    gram = centred @ centred.T + alpha * np.eye(len(design))
    return np.linalg.solve(gram, centred).T


def choose_alpha(design: np.ndarray, response: np.ndarray, n_values: int = 13) -> float:
    """Penalty with the smallest leave-one-out error, from a grid relative to the size of the features.

    Leave-one-out residuals have the closed form ``(y - H y) / (1 - h_ii)`` with the hat matrix ``H``, so no model is fitted
    twice.

    Parameters
    ----------
    design
        (n_conditions, n_features)
    response
        (n_conditions, n_genes)
    n_values
        Number of penalties, from 1e-3 to 1e3 times the mean squared length of a centred feature vector.
    """
    n = len(design)
    centred = design - design.mean(0)
    size = max(float((centred**2).sum() / n), 1e-12)
    grid = size * np.logspace(-3, 3, n_values)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    values = np.clip(values, 0, None)
    errors = []
    for alpha in grid:
        hat = (vectors * (values / (values + alpha))) @ vectors.T + 1.0 / n
        left_out = (response - hat @ response) / np.clip(1 - np.diag(hat), 1e-8, None)[:, None]
        errors.append(float((left_out**2).mean()))
    return float(grid[int(np.argmin(errors))])


def nearest_weights(x: np.ndarray, design: np.ndarray, k: int, metric: str) -> np.ndarray:
    """Equal weights of the ``k`` rows of ``design`` that are nearest to ``x``; ties at the border share.

    Parameters
    ----------
    x
        (n_features,)
    design
        (n, n_features)
    k
        Number of neighbours; all if there are fewer.
    metric
        ``"euclidean"`` or ``"cosine"``.
    """
    if metric == "cosine":
        lengths = np.linalg.norm(design, axis=1) * np.linalg.norm(x)
        distance = 1 - design @ x / np.where(lengths > 0, lengths, 1.0)
    else:
        distance = np.linalg.norm(design - x, axis=1)
    k = min(k, len(design))
    border = np.partition(distance, k - 1)[k - 1]
    tolerance = 1e-9 * max(float(np.abs(distance).max()), 1e-30)
    inside, at = distance < border - tolerance, np.abs(distance - border) <= tolerance
    weights = inside.astype(float)
    weights[at] = (k - inside.sum()) / at.sum()
    return weights / k


def bilinear_solution(
    effects: np.ndarray,
    control: np.ndarray,
    token_rows: list[np.ndarray],
    token_weights: list[np.ndarray],
    n_factors: int,
    penalty: float,
) -> dict[str, np.ndarray]:
    """The bilinear model of Ahlmann-Eltze et al. (Nature Methods 2025) in closed form.

    With the pseudobulks of control and all conditions as columns, ``A`` (n_genes, n_factors) are the gene scores of their
    principal components, ``B`` has the rows of ``A`` for the perturbed genes (their sum for combinations, 0 for control), and
    ``Y`` the effects with row means ``m``. Then ``K = (AᵀA+λI)⁻¹ Aᵀ (Y-m) Bᵀ (BBᵀ+λI)⁻¹`` and the effect of a token with
    scores ``b`` is ``A K b + m``.

    Parameters
    ----------
    effects
        (n_conditions, n_genes) effects.
    control
        (n_genes,) mean of the controls.
    token_rows, token_weights
        Genes that each condition perturbs, and their dosages.
    n_factors
        Number of principal components (at most as many as there are conditions).
    penalty
        λ

    Returns
    -------
    ``scores`` ``A`` (n_genes, k); ``project`` ``(AᵀA+λI)⁻¹Aᵀ`` (k, n_genes); ``solution`` ``(BBᵀ+λI)⁻¹B`` transposed to
    (n_conditions, k), so that ``solution @ b`` weighs the conditions.
    """
    bulks = np.vstack([control, control + effects]).astype(np.float64).T
    centred = bulks - bulks.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    k = min(n_factors, int((values > 1e-10 * max(values[0], 1e-30)).sum()))
    scores = left[:, :k] * values[:k]
    embedding = np.stack(
        [weights @ scores[rows] for rows, weights in zip(token_rows, token_weights, strict=True)]
    )  # (n_conditions, k); control would be a row of zeros, which changes nothing below
    identity = penalty * np.eye(k)
    return {
        "scores": scores,
        "project": np.linalg.solve(scores.T @ scores + identity, scores.T),
        "solution": np.linalg.solve(embedding.T @ embedding + identity, embedding.T).T,
    }
