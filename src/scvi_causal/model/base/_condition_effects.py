"""Effects of training conditions from population means: contrasts within strata, and their noise."""

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
