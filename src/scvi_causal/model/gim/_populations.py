"""What is kept of the training cells: means of populations gene by gene, and second moments of nodes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import condition_codes
from scvi_causal.dataloaders import get_strata
from scvi_causal.model.base._group_moments import group_moments, iterate_expression
from scvi_causal.model.gim._objective import Statistics
from scvi_causal.model.gim._rates import RateSums

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi.data import AnnDataManager

    from scvi_causal.model.gim._nodes import NodeSpace
    from scvi_causal.model.gim._rates import Rates

logger = logging.getLogger(__name__)

_ENOUGH_CELLS = 100.0  # of a stratum


@dataclass(frozen=True)
class Grouping:
    """Which population each of some cells belongs to.

    A *group* is a condition in a stratum (a combination of batch and categorical covariates); the controls come first.

    Parameters
    ----------
    rows
        (n,) rows of the AnnData.
    group
        (n,) group of each.
    conditions
        (K, n_tokens) dosages of the conditions other than control.
    group_condition
        (n_groups,) condition of each group, -1 for control.
    group_stratum
        (n_groups,) code of the stratum of each group.
    """

    rows: np.ndarray
    group: np.ndarray
    conditions: csr_matrix
    group_condition: np.ndarray
    group_stratum: np.ndarray

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return len(self.group_condition)

    @property
    def n_cells(self) -> np.ndarray:
        """(n_groups,) cells of each group."""
        return np.bincount(self.group, minlength=self.n_groups)

    @property
    def condition(self) -> np.ndarray:
        """(n,) condition of each cell, -1 for control."""
        return self.group_condition[self.group]


def group_cells(manager: AnnDataManager, rows: np.ndarray) -> Grouping:
    """Sort cells into populations."""
    dosage = csr_matrix(manager.get_from_registry(CAUSAL_KEYS.PERTURBATION))[rows]
    codes, conditions = condition_codes(dosage)
    is_control = np.diff(conditions.indptr) == 0
    condition = np.where(is_control, -1, np.cumsum(~is_control) - 1)[codes]
    stratum = get_strata(manager)[rows]
    pairs, group = np.unique(np.stack([condition, stratum]), axis=1, return_inverse=True)
    return Grouping(rows, group.reshape(-1), conditions[~is_control].tocsr(), pairs[0], pairs[1])


@dataclass(frozen=True)
class Controls:
    """Means of the training controls of each stratum; one more row stands for all of them together.

    Parameters
    ----------
    strata
        (n_strata,) codes, ascending.
    mean
        (n_strata + 1, n_columns)
    n_cells
        (n_strata + 1,)
    """

    strata: np.ndarray
    mean: np.ndarray
    n_cells: np.ndarray

    def place(self, code: np.ndarray) -> np.ndarray:
        """Row for each code; the last one for a stratum without training controls."""
        place = np.minimum(np.searchsorted(self.strata, code), len(self.strata) - 1)
        return np.where(self.strata[place] == code, place, len(self.strata))


def control_means(grouping: Grouping, mean: np.ndarray) -> Controls:
    """Take the controls out of (n_groups, n_columns) means."""
    control = np.flatnonzero(grouping.group_condition < 0)
    n, strata = grouping.n_cells[control], grouping.group_stratum[control]
    pooled = n @ mean[control] / n.sum()
    return Controls(strata, np.vstack([mean[control], pooled]), np.append(n, n.sum()))


def effects(grouping: Grouping, mean: np.ndarray, controls: Controls) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Effects of conditions, taken within strata and averaged over them.

    Strata differ in their effects, so that beyond some cells more of them do not make a stratum count for more: each has the weight
    :math:`1 / (1/n + 1/n_0 + 1/100)` with its numbers of perturbed cells and controls.

    Returns
    -------
    (K, n_columns) effects, (K,) numbers of cells, and (K,) *effective* numbers: those of one population with an effect as well known.
    """
    perturbed = np.flatnonzero(grouping.group_condition >= 0)
    condition, place = grouping.group_condition[perturbed], controls.place(grouping.group_stratum[perturbed])
    n_groups, n_conditions = grouping.n_cells[perturbed].astype(float), grouping.conditions.shape[0]
    n = np.bincount(condition, n_groups, n_conditions)
    alone = len(controls.strata) == 1  # the model has an intercept for the error of the controls
    error = 1 / n_groups + (0.0 if alone else 1 / controls.n_cells[place])
    weight = 1 / (error + 1 / _ENOUGH_CELLS)
    share = weight / np.bincount(condition, weight, n_conditions)[condition]
    average = csr_matrix((share, (condition, np.arange(len(perturbed)))), shape=(n_conditions, len(perturbed)))
    effect = average @ (mean[perturbed] - controls.mean[place])
    return effect, n, 1 / np.bincount(condition, share**2 * error, n_conditions)


@dataclass(frozen=True)
class Populations:
    """Training cells gene by gene.

    Parameters
    ----------
    grouping
        The cells.
    controls
        Mean expression of the controls.
    effect
        (K, n_genes) mean of the perturbed cells minus that of the controls of their strata.
    n
        (K,) number of cells of each condition.
    variance
        (n_genes,) variance of control cells within strata.
    detection
        (n_genes,) share of the cells in which a gene is not zero, the higher of controls and perturbed cells.
    rates
        Of the groups, for counts.
    log_fold
        (K, n_genes) change of the log rate, taken and averaged as ``effect``; only for counts.
    """

    grouping: Grouping
    controls: Controls
    effect: np.ndarray
    n: np.ndarray
    variance: np.ndarray
    detection: np.ndarray
    rates: Rates | None = None
    log_fold: np.ndarray | None = None


def read_populations(manager: AnnDataManager, rows: np.ndarray, n_genes: int, scale: str) -> Populations:
    """One pass over the training cells.

    Raises
    ------
    ValueError
        If no training cell is perturbed, or none is a control.
    """
    grouping = group_cells(manager, rows)
    is_control = grouping.group_condition < 0
    if is_control.all() or not is_control.any():
        what, mark = ("perturbed", "perturbed cells") if is_control.all() else ("a control", "some controls")
        raise ValueError(
            f"None of the {len(rows):,} training cells is {what}: there is no effect to learn. Check the split: {mark} have to be "
            "among 'train'."
        )
    found = np.zeros((2, n_genes))
    sums = RateSums(manager, rows, grouping.group, is_control, n_genes) if scale == "log1p" else None

    def counting():
        for part, x in iterate_expression(manager, rows, "continuous"):
            x = x if sums is None else sums.add(part, x)
            treated = grouping.condition[part] >= 0
            for i, cells in enumerate((~treated, treated)):
                found[i] += np.asarray((x[cells] != 0).sum(0)).ravel()
            yield part, x

    moments = group_moments(counting(), grouping.group, grouping.n_groups, n_genes)
    controls = control_means(grouping, moments.mean)
    without = np.setdiff1d(grouping.group_stratum, controls.strata)
    if len(without):
        logger.warning(
            "%d strata of batch and covariates have perturbed training cells but no training control; their effects are taken "
            "against all controls together.",
            len(without),
        )
    effect, n, _ = effects(grouping, moments.mean, controls)
    n_groups = grouping.n_cells[is_control].astype(float)
    weight = np.maximum(n_groups - 1, 0)[:, None]
    variance = (weight * np.nan_to_num(moments.variance[is_control])).sum(0) / max(weight.sum(), 1)
    n_cells = np.array([n_groups.sum(), n.sum()])
    rates = None if sums is None else sums.finish()
    log_fold = None if rates is None else effects(grouping, rates.log, control_means(grouping, rates.log))[0]
    return Populations(
        grouping, controls, effect, n, variance, (found / n_cells[:, None]).max(0), rates=rates, log_fold=log_fold
    )


@dataclass(frozen=True)
class NodeMoments:
    """Training cells node by node, standardised by the controls.

    Parameters
    ----------
    controls
        Means of the controls of each stratum, on the scale of the nodes before standardising.
    scale
        (d,) standard deviation of the controls within strata.
    statistics
        What the causal model is fitted to; conditions are those of the grouping.
    """

    controls: Controls
    scale: np.ndarray
    statistics: Statistics


def node_moments(
    manager: AnnDataManager,
    grouping: Grouping,
    space: NodeSpace,
    scale: str,
    *,
    per_set: bool = False,
    reference: NodeMoments | None = None,
) -> NodeMoments:
    """One pass over the cells: means and covariances of nodes.

    Parameters
    ----------
    manager, grouping
        The cells.
    space
        What the nodes are.
    scale
        ``"log1p"`` or ``"continuous"``.
    per_set
        Whether each condition gets a covariance of its own.
    reference
        Whose controls and scale to use, for cells that do not train.
    """
    d = len(space.names)
    cell_condition = grouping.condition
    sets = grouping.conditions.shape[0] if per_set else 1
    # controls last; without per_set all perturbed cells are one set
    set_of_cell = np.where(cell_condition < 0, sets, cell_condition if per_set else 0)
    total, squares = np.zeros((grouping.n_groups, d)), np.zeros((sets + 1, d, d))
    for part, values in _node_values(manager, grouping.rows, space, scale):
        n = len(values)
        total += csr_matrix((np.ones(n), (grouping.group[part], np.arange(n))), shape=(len(total), n)) @ values
        for k in np.unique(set_of_cell[part]):
            mine = values[set_of_cell[part] == k]
            squares[k] += mine.T @ mine
    n_groups = grouping.n_cells.astype(float)
    mean = total / n_groups[:, None]
    set_of_group = np.where(grouping.group_condition < 0, sets, grouping.group_condition if per_set else 0)
    for k in np.unique(set_of_group):
        mine = set_of_group == k
        squares[k] -= (n_groups[mine, None] * mean[mine]).T @ mean[mine]
    freedom = np.bincount(set_of_group, n_groups - 1, sets + 1)
    if reference is None:
        controls = control_means(grouping, mean)
        deviation = np.sqrt(np.diag(squares[-1]) / max(freedom[-1], 1))
        deviation[deviation == 0] = 1.0
    else:
        controls, deviation = reference.controls, reference.scale
    outer = np.outer(deviation, deviation)
    pooled = squares.sum(0) / max(freedom.sum(), 1) / outer
    effect, _, n = effects(grouping, mean, controls)
    covariance = squares / np.maximum(freedom, 1)[:, None, None] / outer if per_set else None
    statistics = Statistics(
        n_control=float(n_groups[grouping.group_condition < 0].sum()),
        control_mean=torch.from_numpy(_control_mean(grouping, mean, controls) / deviation),
        n=torch.from_numpy(n),
        mean=torch.from_numpy(effect / deviation),
        covariance=torch.from_numpy(pooled),
        set_covariance=None if covariance is None else torch.from_numpy(covariance),
    )
    return NodeMoments(controls, deviation, statistics)


def _control_mean(grouping: Grouping, mean: np.ndarray, controls: Controls) -> np.ndarray:
    """(d,) mean of the controls after centring: zero for the training controls themselves."""
    control = np.flatnonzero(grouping.group_condition < 0)
    if not len(control):
        return np.zeros(mean.shape[1])
    n = grouping.n_cells[control].astype(float)
    return n @ (mean[control] - controls.mean[controls.place(grouping.group_stratum[control])]) / n.sum()


def _node_values(manager: AnnDataManager, rows: np.ndarray, space: NodeSpace, scale: str):
    """Pieces of the cells and their (n, d) node values."""
    if space.key is not None:
        matrix = np.asarray(manager.adata.obsm[space.key], dtype=np.float64)
        yield slice(0, len(rows)), matrix[rows]
        return
    encode: Callable = space.encode
    for part, x in iterate_expression(manager, rows, scale):
        yield part, encode(x)
