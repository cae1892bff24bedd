"""Effects of the training conditions: sums over groups of cells, and what follows from them."""

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
from scvi_causal.model.base._group_moments import GroupMoments, group_moments, iterate_expression

if TYPE_CHECKING:
    from scvi.data import AnnDataManager

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EffectTable:
    """Effects of the training conditions, stratum by stratum.

    A *row* is a condition in a stratum (a combination of categorical covariates, not of batches). The last row of the controls
    stands for all training controls together, and serves strata without one.

    Parameters
    ----------
    conditions
        (n_conditions, n_tokens) dosages of the conditions other than control.
    row_condition, row_stratum
        (n_rows,) condition and stratum (row of the controls) of each row.
    effect
        (n_rows, n_genes) mean of the perturbed cells minus mean of the controls of the stratum.
    perturbed_variance
        (n_rows, n_genes) sampling variance of the mean of the perturbed cells.
    row_cells
        (n_rows,) number of these.
    strata
        (n_strata,) codes of the strata, ascending; see :func:`stratum_codes`.
    control_mean, control_variance
        (n_strata + 1, n_genes) mean of the controls and its sampling variance.
    """

    conditions: csr_matrix
    row_condition: np.ndarray
    row_stratum: np.ndarray
    effect: np.ndarray
    perturbed_variance: np.ndarray
    row_cells: np.ndarray
    strata: np.ndarray
    control_mean: np.ndarray
    control_variance: np.ndarray


def stratum_codes(adata_manager: AnnDataManager) -> np.ndarray:
    """(n_cells,) code of the categorical covariates of each cell, the batch left out: effects are biology."""
    return get_strata(adata_manager, with_batch=False)


def effect_table(adata_manager: AnnDataManager, rows: np.ndarray, n_genes: int, scale: str) -> EffectTable:
    """Effects of all conditions among the cells ``rows``, against the controls among them.

    Raises
    ------
    ValueError
        If no cell is perturbed.
    """
    dosage = csr_matrix(adata_manager.get_from_registry(CAUSAL_KEYS.PERTURBATION))[rows]
    codes, conditions = condition_codes(dosage)
    is_control = np.diff(conditions.indptr) == 0
    if is_control.all():
        raise ValueError(
            f"None of the {len(rows):,} training cells is perturbed: there is no effect to learn. Check the split: "
            "perturbed cells have to be among 'train'."
        )
    strata, stratum = np.unique(stratum_codes(adata_manager)[rows], return_inverse=True)
    control_cell = is_control[codes]
    n_strata = len(strata)
    # groups: the controls of each stratum first, then every condition of a stratum that has cells
    keys = np.where(control_cell, stratum, n_strata + codes * n_strata + stratum)
    found, groups = np.unique(keys, return_inverse=True)
    n_control_groups = int((found < n_strata).sum())
    moments = group_moments(iterate_expression(adata_manager, rows, scale), groups, len(found), n_genes)

    controls = slice(0, n_control_groups)
    mean, variance = _all_strata(moments, found[controls], n_strata)
    row_key = found[n_control_groups:] - n_strata
    row_condition, row_stratum = row_key // n_strata, row_key % n_strata
    _warn_without_controls(row_stratum, found[controls])
    n = moments.n_cells[n_control_groups:, None]
    spread = moments.variance[n_control_groups:]
    # one cell says nothing about its variance: take that of the controls
    alone = np.isnan(spread)
    spread = np.where(alone, _cell_variance(moments, controls), spread)
    renumber = np.cumsum(~is_control) - 1
    return EffectTable(
        conditions=conditions[~is_control].tocsr(),
        row_condition=renumber[row_condition],
        row_stratum=row_stratum,
        effect=(moments.mean[n_control_groups:] - mean[row_stratum]).astype(np.float32),
        perturbed_variance=(spread / n).astype(np.float32),
        row_cells=moments.n_cells[n_control_groups:],
        strata=strata,
        control_mean=mean.astype(np.float32),
        control_variance=variance.astype(np.float32),
    )


def _cell_variance(moments: GroupMoments, controls: slice) -> np.ndarray:
    """(n_genes,) variance of control cells within strata."""
    n, variance = moments.n_cells[controls, None], moments.variance[controls]
    weight = np.where(np.isnan(variance), 0, n - 1)
    return np.nansum(weight * np.nan_to_num(variance), 0) / max(int(weight[:, :1].sum()), 1)


def _all_strata(moments: GroupMoments, with_controls: np.ndarray, n_strata: int) -> tuple[np.ndarray, np.ndarray]:
    """(n_strata + 1, n_genes) mean of controls and its variance; strata without controls get those of all together."""
    controls = slice(0, len(with_controls))
    n = moments.n_cells[controls, None].astype(float)
    pooled = (n * moments.mean[controls]).sum(0) / n.sum()
    within = _cell_variance(moments, controls)
    mean = np.tile(pooled, (n_strata + 1, 1))
    variance = np.tile(within / n.sum(), (n_strata + 1, 1))
    mean[with_controls] = moments.mean[controls]
    variance[with_controls] = np.where(np.isnan(moments.variance[controls]), within, moments.variance[controls]) / n
    return mean, variance


def _warn_without_controls(row_stratum: np.ndarray, with_controls: np.ndarray) -> None:
    missing = np.setdiff1d(row_stratum, with_controls)
    if len(missing):
        logger.warning(
            "%d strata of categorical covariates have perturbed training cells but no training control; their effects are "
            "taken against all controls together.",
            len(missing),
        )


def to_buffers(table: EffectTable) -> dict[str, torch.Tensor]:
    """The table as tensors, to be kept in the module."""
    return {
        "condition_indptr": torch.from_numpy(table.conditions.indptr.astype(np.int64)),
        "condition_tokens": torch.from_numpy(table.conditions.indices.astype(np.int64)),
        "condition_dosage": torch.from_numpy(table.conditions.data.astype(np.float32)),
        "row_condition": torch.from_numpy(table.row_condition.astype(np.int64)),
        "row_stratum": torch.from_numpy(table.row_stratum.astype(np.int64)),
        "effect": torch.from_numpy(table.effect),
        "perturbed_variance": torch.from_numpy(table.perturbed_variance),
        "strata": torch.from_numpy(table.strata.astype(np.int64)),
        "control_mean": torch.from_numpy(table.control_mean),
        "control_variance": torch.from_numpy(table.control_variance),
    }
