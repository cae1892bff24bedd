"""Ridge regression from features of tokens to what tokens do, with a penalty that may be infinite."""

from __future__ import annotations

import numpy as np


def ridge_on_features(
    features: np.ndarray, response: np.ndarray, penalty: float | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Map from features of tokens to responses, with a penalty chosen by leaving tokens out.

    Parameters
    ----------
    features
        (n_tokens, n_features) of the training tokens.
    response
        (n_tokens, n_outputs)
    penalty
        Use this one.

    Returns
    -------
    center
        (n_features,)
    coefficients
        (n_features, n_outputs); the prediction is the mean response plus ``(features - center) @ coefficients``.
    penalty
        By the one-standard-error rule; infinite if features predict no better than the mean does.
    """
    center = features.mean(0)
    x, y = features - center, response - response.mean(0)
    n = len(x)
    gram = x @ x.T
    scale = max(np.trace(gram) / n, 1e-12)
    values, vectors = np.linalg.eigh(gram)
    if penalty is None:
        penalty = _leave_one_out_penalty(values, vectors, y, scale)
    if not np.isfinite(penalty):
        return center, np.zeros((x.shape[1], y.shape[1])), penalty
    dual = (vectors / (values + penalty)) @ (vectors.T @ y)
    return center, x.T @ dual, penalty


def left_out_residuals(features: np.ndarray, response: np.ndarray, penalty: float) -> np.ndarray:
    """(n_tokens, n_outputs) errors of each token's prediction from the others, in closed form."""
    x, y = features - features.mean(0), response - response.mean(0)
    return _left_out(*np.linalg.eigh(x @ x.T), y, penalty)


def _left_out(values: np.ndarray, vectors: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    n = len(y)
    if not np.isfinite(penalty):
        return y * (n / max(n - 1, 1))  # the mean of the others predicts
    # the mean is estimated too, and takes its share of the leverage
    hat = (vectors * (values / (values + penalty))) @ vectors.T + 1.0 / n
    return (y - hat @ y) / (1.0 - np.diag(hat))[:, None]


def _leave_one_out_penalty(values: np.ndarray, vectors: np.ndarray, y: np.ndarray, scale: float) -> float:
    """Largest penalty whose leave-one-out error is within one standard error of the least.

    Infinite, which is to predict the mean of the others, where features do no better than chance would: with a few tokens
    the least error alone often is chance.
    """
    penalties = [np.inf, *(scale * np.logspace(2, -3, 16))] if len(y) > 2 else [np.inf]
    errors = [(_left_out(values, vectors, y, penalty) ** 2).sum(1) for penalty in penalties]
    best = errors[int(np.argmin([error.sum() for error in errors]))]
    for error, penalty in zip(errors, penalties, strict=True):
        excess = error - best
        if excess.mean() <= excess.std() / np.sqrt(len(y)):
            return penalty
    return penalties[-1]
