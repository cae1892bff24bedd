"""Responses estimated from population means: what training starts from.

The response of a condition is linear in the parameters of :class:`SCCVAEModule` on the scale of log1p expression, so that
population means determine it by ridge regression, at once and without the noise of stochastic gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import condition_codes
from scvi_causal.dataloaders import get_strata
from scvi_causal.model.base._group_moments import GroupMoments, group_moments, iterate_expression
from scvi_causal.model.base._shrinkage import RowNoise

if TYPE_CHECKING:
    from scvi.data import AnnDataManager


@dataclass(frozen=True)
class ConditionEffects:
    """Contrasts of training conditions with the controls of their stratum.

    Parameters
    ----------
    dosage
        (n_rows, n_tokens) dosages of each row, a condition in a context.
    context
        (n_rows,) context (combination of categorical covariates) of each row, an index into ``contexts``.
    effect, variance
        (n_rows, n_genes) difference of log1p mean expression (or of means, for continuous data), and its sampling variance.
    control
        (n_rows, n_genes) mean expression of the controls.
    n_cells
        (n_rows,) perturbed cells.
    contexts
        (n_contexts, n_genes) mean log expression of the controls of each context.
    noise
        What ``variance`` is made of: the row's own cells, and controls that it shares with other rows.
    """

    dosage: np.ndarray
    context: np.ndarray
    effect: np.ndarray
    variance: np.ndarray
    control: np.ndarray
    n_cells: np.ndarray
    contexts: np.ndarray
    noise: RowNoise


def condition_effects(
    manager: AnnDataManager, rows: np.ndarray, n_genes: int, log_normalize: bool, of_logs: bool = False
) -> ConditionEffects:
    """Contrasts within strata (batches too), averaged over the batches of a context by precision.

    Parameters
    ----------
    manager, rows, n_genes
        Data, training cells, number of genes.
    log_normalize
        Whether the data are counts.
    of_logs
        For counts: differences of the mean of logs, instead of the log of means.
    """
    dosage = csr_matrix(manager.get_from_registry(CAUSAL_KEYS.PERTURBATION))[rows]
    codes, conditions = condition_codes(dosage)
    control = np.diff(conditions.indptr) == 0
    _, context = np.unique(get_strata(manager, with_batch=False)[rows], return_inverse=True)
    _, stratum = np.unique(get_strata(manager)[rows], return_inverse=True)
    n_strata = stratum.max() + 1
    keys, groups = np.unique(codes * n_strata + stratum, return_inverse=True)
    log_of_means = log_normalize and not of_logs
    scale = "normalized" if log_of_means else "log1p" if log_normalize else "continuous"
    moments = group_moments(iterate_expression(manager, rows, scale), groups, len(keys), n_genes)
    context_of_stratum = np.zeros(n_strata, dtype=np.int64)
    context_of_stratum[stratum] = context
    table = _contrasts(moments, keys // n_strata, keys % n_strata, control, context_of_stratum, log_of_means)
    condition, where, *arrays, own, loading, shared = table
    is_control = control[codes]
    scale = "log1p" if log_normalize else "continuous"
    cells = rows[is_control]
    means = group_moments(iterate_expression(manager, cells, scale), context[is_control], context.max() + 1, n_genes)
    has_controls = means.n_cells > 0
    contexts = np.where(has_controls[:, None], means.mean, means.mean[has_controls].mean(0))
    return ConditionEffects(conditions[condition].toarray(), where, *arrays, contexts, RowNoise(own, loading, shared))


def _contrasts(
    moments: GroupMoments,
    condition: np.ndarray,
    stratum: np.ndarray,
    control: np.ndarray,
    context_of_stratum: np.ndarray,
    log: bool,
) -> tuple[np.ndarray, ...]:
    """Condition, context, effect, variance, control mean and cells of each row, and the three parts of their noise."""
    typical = np.nanmean(moments.variance, 0)
    variance = np.where(np.isnan(moments.variance), typical, moments.variance) / moments.n_cells[:, None]
    of_controls = np.flatnonzero(control[condition])
    partner = np.full(stratum.max() + 1, -1)
    partner[stratum[of_controls]] = of_controls
    share = moments.n_cells[of_controls] / moments.n_cells[of_controls].sum()
    pooled = share @ moments.mean[of_controls]
    # the controls of each stratum, and for strata without any, all of them
    use = np.where(partner[:, None] >= 0, partner[:, None] == of_controls, share)
    shared = variance[of_controls] / ((1.0 + moments.mean[of_controls]) ** 2 if log else 1.0)
    keys = condition * (context_of_stratum.max() + 1) + context_of_stratum[stratum]
    out = []
    for key in np.unique(keys[~control[condition]]):
        groups = np.flatnonzero(keys == key)
        reference = partner[stratum[groups]]
        n_reference = np.where(reference >= 0, moments.n_cells[reference], moments.n_cells[of_controls].sum())
        weight = 1.0 / (1.0 / moments.n_cells[groups] + 1.0 / n_reference)
        weight = (weight / weight.sum())[:, None]
        before = (weight * np.where(reference[:, None] >= 0, moments.mean[reference], pooled)).sum(0)
        after = (weight * moments.mean[groups]).sum(0)
        own = (weight**2 * variance[groups]).sum(0)
        noise = own + (weight**2 * np.where(reference[:, None] >= 0, variance[reference], 0.0)).sum(0)
        effect = np.log1p(after) - np.log1p(before) if log else after - before
        # delta method; the larger mean bounds the variance from below for genes seen on one side only
        slope = 1.0 / (1.0 + np.maximum(before, after)) ** 2 if log else 1.0
        first, n_cells = groups[0], moments.n_cells[groups].sum()
        where = context_of_stratum[stratum[first]]
        loading = weight[:, 0] @ use[stratum[groups]]
        out.append((condition[first], where, effect, noise * slope, before, n_cells, own * slope, loading))
    return (*(np.array(column) for column in zip(*out, strict=True)), shared)


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


def denoise(effect: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Effects without the directions that noise alone explains.

    Entries are divided by their noise, and singular values shrunk as is optimal for white noise of unit variance
    (Gavish and Donoho, IEEE Trans. Inf. Theory 2017, Frobenius loss); those below the noise become 0.

    Parameters
    ----------
    effect, variance
        (n_rows, n_genes) estimates and their sampling variances.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).normal(size=(20, 500))
    >>> float(np.abs(denoise(noise, np.ones_like(noise))).max()) < 0.5
    True
    """
    gene = np.sqrt(variance.mean(0)) + 1e-12
    row = np.sqrt((variance / gene**2).mean(1))[:, None] + 1e-12
    left, values, right = np.linalg.svd(effect / (row * gene), full_matrices=False)
    beta = min(effect.shape) / max(effect.shape)
    y = values / np.sqrt(max(effect.shape))
    inside = np.sqrt(np.maximum((y**2 - beta - 1) ** 2 - 4 * beta, 0.0)) / np.maximum(y, 1e-12)
    shrunk = np.where(y > 1 + np.sqrt(beta), inside, 0.0) * np.sqrt(max(effect.shape))
    return (left * shrunk) @ right * (row * gene)


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
