"""Effects of training conditions from population means: contrasts within strata, and their noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_matrix

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import condition_codes
from scvi_causal.dataloaders import get_strata
from scvi_causal.model.base._group_moments import GroupMoments, group_moments, iterate_expression
from scvi_causal.model.base._shrinkage import RowNoise
from scvi_causal.model.base._token_contrasts import TokenContrasts, explained_by_tokens, token_contrasts

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
    manager: AnnDataManager,
    rows: np.ndarray,
    n_genes: int,
    log_normalize: bool,
    of_logs: bool = False,
    dosage: csr_matrix | None = None,
    within: np.ndarray | None = None,
) -> ConditionEffects:
    """Contrasts within strata (batches too), averaged over the batches of a context by precision.

    A combination with fewer than :data:`FEWEST_CELLS` cells in a context has no row. Its cells, and those of single tokens, speak for
    their tokens: the rows of these come from a regression over tokens, :func:`token_contrasts`. Without such combinations nothing is
    regressed.

    Parameters
    ----------
    manager, rows, n_genes
        Data, training cells, number of genes.
    log_normalize
        Whether the data are counts.
    of_logs
        For counts: differences of the mean of logs, instead of the log of means.
    dosage
        (n_rows, n_tokens) what makes the conditions of ``rows``, a row of zeros the controls; by default the registered dosages.
    within
        (n_rows,) codes that make strata finer, like one more batch.
    """
    if dosage is None:
        dosage = csr_matrix(manager.get_from_registry(CAUSAL_KEYS.PERTURBATION))[rows]
    codes, conditions = condition_codes(dosage)
    n_carried = np.diff(conditions.indptr)
    _, context = np.unique(get_strata(manager, with_batch=False)[rows], return_inverse=True)
    strata = get_strata(manager)[rows]
    if within is not None:
        strata = strata * (within.max() + 1) + within
    _, stratum = np.unique(strata, return_inverse=True)
    log_of_means = log_normalize and not of_logs
    scale = "normalized" if log_of_means else "log1p" if log_normalize else "continuous"
    by_tokens = explained_by_tokens(codes, context, n_carried)
    kept = np.flatnonzero(~by_tokens)
    n_strata = stratum.max() + 1
    keys, groups = np.unique(codes[kept] * n_strata + stratum[kept], return_inverse=True)
    moments = group_moments(iterate_expression(manager, rows[kept], scale), groups, len(keys), n_genes)
    context_of_stratum = np.zeros(n_strata, dtype=np.int64)
    context_of_stratum[stratum] = context
    controls = _Controls(moments, np.flatnonzero(n_carried[keys // n_strata] == 0), keys % n_strata, log_of_means)
    parts = _contrasts(moments, keys // n_strata, keys % n_strata, conditions, controls, context_of_stratum)
    for here in np.unique(context[by_tokens]):
        cells = np.flatnonzero((context == here) & (by_tokens | (n_carried[codes] == 0)))
        strata, place = np.unique(stratum[cells], return_inverse=True)
        read = partial(iterate_expression, manager, rows[cells], scale)
        found = token_contrasts(read, dosage[cells], place, n_genes)
        parts += _rows_of_tokens(found, strata, here, controls)
    table = {name: np.array([part[name] for part in parts]) for name in parts[0]}
    is_control = n_carried[codes] == 0
    scale = "log1p" if log_normalize else "continuous"
    cells = rows[is_control]
    means = group_moments(iterate_expression(manager, cells, scale), context[is_control], context.max() + 1, n_genes)
    has_controls = means.n_cells > 0
    contexts = np.where(has_controls[:, None], means.mean, means.mean[has_controls].mean(0))
    noise = RowNoise(table.pop("own"), table.pop("loading"), controls.log_variance)
    return ConditionEffects(**table, contexts=contexts, noise=noise)


class _Controls:
    """The controls of each stratum, with their numbers, means and sampling variances.

    Parameters
    ----------
    moments
        Of all groups.
    groups
        Which of them are controls.
    stratum
        Stratum of every group.
    log
        Whether effects are differences of logs.
    """

    def __init__(self, moments: GroupMoments, groups: np.ndarray, stratum: np.ndarray, log: bool):
        self.groups, self.stratum, self.log = groups, stratum[groups], log
        self.n_cells, self.mean = moments.n_cells[groups], moments.mean[groups]
        typical = np.nanmean(moments.variance, 0)
        self.cell_variance = np.where(np.isnan(moments.variance), typical, moments.variance)
        self.variance = self.cell_variance[groups] / self.n_cells[:, None]
        self.log_variance = self.variance / ((1.0 + self.mean) ** 2 if log else 1.0)

    def row(
        self, dosage: np.ndarray, context: int, before: np.ndarray, after: np.ndarray, own: np.ndarray, **more
    ) -> dict[str, Any]:
        """A row of the table from means and from the variance ``own`` of what is not control."""
        noise = own + more["loading"] ** 2 @ self.variance
        # delta method; the larger mean bounds the variance from below for genes seen on one side only
        slope = 1.0 / (1.0 + np.maximum(before, after)) ** 2 if self.log else 1.0
        effect = np.log1p(after) - np.log1p(before) if self.log else after - before
        values = {"effect": effect, "variance": noise * slope, "control": before, "own": own * slope}
        return {"dosage": dosage, "context": context} | values | more


def _contrasts(
    moments: GroupMoments,
    condition: np.ndarray,
    stratum: np.ndarray,
    conditions: csr_matrix,
    controls: _Controls,
    context_of_stratum: np.ndarray,
) -> list[dict[str, Any]]:
    """A row for each condition in a context; groups of cells are ``condition`` in ``stratum``."""
    variance = controls.cell_variance / moments.n_cells[:, None]
    partner = np.full(len(context_of_stratum), -1)
    partner[controls.stratum] = np.arange(len(controls.groups))
    share = controls.n_cells / controls.n_cells.sum()
    # the controls of each stratum, and for strata without any, all of them
    use = np.where(partner[:, None] >= 0, partner[:, None] == np.arange(len(share)), share)
    n_reference = np.where(partner >= 0, controls.n_cells[partner], controls.n_cells.sum())
    perturbed = np.setdiff1d(np.arange(len(condition)), controls.groups)
    keys = condition * (context_of_stratum.max() + 1) + context_of_stratum[stratum]
    order = perturbed[np.argsort(keys[perturbed], kind="stable")]
    first = np.flatnonzero(np.diff(keys[order], prepend=-1))
    rows = []
    for groups in np.split(order, first[1:]) if len(order) else []:
        weight = 1.0 / (1.0 / moments.n_cells[groups] + 1.0 / n_reference[stratum[groups]])
        weight = weight / weight.sum()
        loading = weight @ use[stratum[groups]]
        rows.append(
            controls.row(
                conditions[condition[groups[0]]].toarray()[0],
                context_of_stratum[stratum[groups[0]]],
                before=loading @ controls.mean,
                after=weight @ moments.mean[groups],
                own=weight**2 @ variance[groups],
                n_cells=moments.n_cells[groups].sum(),
                loading=loading,
            )
        )
    return rows


def _rows_of_tokens(
    found: TokenContrasts, strata: np.ndarray, context: int, controls: _Controls
) -> list[dict[str, Any]]:
    """A row for each token of a context; ``strata`` are those of the context."""
    place = {int(s): i for i, s in enumerate(controls.stratum)}
    use = [(k, place[int(s)]) for k, s in enumerate(strata) if int(s) in place]
    columns = [i for _, i in use]
    rows = []
    for unit in range(len(found.n_cells)):
        loading = np.zeros(len(controls.groups))
        loading[columns] = found.loading[unit, [k for k, _ in use]]
        before = np.maximum(found.before[unit], 0.0) if controls.log else found.before[unit]
        row = controls.row(
            found.dosage[unit].toarray()[0],
            context,
            before=before,
            after=found.after[unit],
            own=found.own[unit],
            n_cells=found.n_cells[unit],
            loading=loading,
        )
        weight = controls.n_cells[columns] / controls.n_cells[columns].sum()
        rows.append(row | {"control": weight @ controls.mean[columns]})
    return rows


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
