"""Effects of the training conditions: sums over groups of cells, and what follows from them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS, NORMALIZED_TOTAL
from scvi_causal.data import condition_codes
from scvi_causal.dataloaders import CausalDataset, SparseRows, get_strata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.data import AnnDataManager

logger = logging.getLogger(__name__)

_STEP = 4_096


@dataclass(frozen=True)
class GroupMoments:
    """Number of cells, mean and variance per gene of groups of cells.

    Parameters
    ----------
    n_cells
        (n_groups,)
    mean
        (n_groups, n_genes)
    variance
        (n_groups, n_genes) unbiased variance of cells; NaN for groups of one cell.
    """

    n_cells: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


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
    strata: np.ndarray
    control_mean: np.ndarray
    control_variance: np.ndarray


def stratum_codes(adata_manager: AnnDataManager) -> np.ndarray:
    """(n_cells,) code of the categorical covariates of each cell, the batch left out: effects are biology."""
    return get_strata(adata_manager, with_batch=False)


def iterate_expression(
    adata_manager: AnnDataManager, rows: np.ndarray, scale: str
) -> Iterator[tuple[slice, csr_matrix]]:
    """Pieces of the expression of ``rows`` on the scale of the baselines, never more than a few thousand cells at once.

    Parameters
    ----------
    adata_manager
        Manager of the training data.
    rows
        Cells to read.
    scale
        ``"log1p"``: log(1 + counts per 10,000 of the library); ``"continuous"``: as it is.
    """
    dataset = CausalDataset(adata_manager, [REGISTRY_KEYS.X_KEY], load_sparse_tensor=True)
    library = None
    if REGISTRY_KEYS.SIZE_FACTOR_KEY in adata_manager.data_registry:
        library = np.asarray(adata_manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY), dtype=np.float64).ravel()
    for start in range(0, len(rows), _STEP):
        part = rows[start : start + _STEP]
        x = dataset[part][REGISTRY_KEYS.X_KEY]
        if isinstance(x, SparseRows):
            indptr = np.concatenate([[0], np.cumsum(x.counts)])
            x = csr_matrix((x.values, x.columns, indptr), shape=(len(part), x.n_columns))
        else:
            x = csr_matrix(x)
        x = x.astype(np.float64)
        if scale == "log1p":
            total = np.asarray(x.sum(1)).ravel() if library is None else library[part]
            per_entry = np.repeat(NORMALIZED_TOTAL / np.where(total > 0, total, 1.0), np.diff(x.indptr))
            x.data = np.log1p(x.data * per_entry)
        yield slice(start, start + len(part)), x


def group_moments(
    pieces: Iterator[tuple[slice, csr_matrix]], groups: np.ndarray, n_groups: int, n_genes: int
) -> GroupMoments:
    """Moments of groups of cells from sums over sparse pieces; float64, because sums of squares cancel.

    Parameters
    ----------
    pieces
        Cells ``slice`` of the whole and their expression.
    groups
        (n_cells,) group of each cell.
    n_groups, n_genes
        Size of the result.
    """
    total, squares = np.zeros((n_groups, n_genes)), np.zeros((n_groups, n_genes))
    for part, x in pieces:
        n = x.shape[0]
        indicator = csr_matrix((np.ones(n), (groups[part], np.arange(n))), shape=(n_groups, n))
        for target, values in ((total, x), (squares, x.multiply(x).tocsr())):
            added = (indicator @ values).tocoo()
            target[added.row, added.col] += added.data
    n_cells = np.bincount(groups, minlength=n_groups)
    per_group = np.maximum(n_cells, 1)[:, None]
    mean = total / per_group
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.clip(squares - per_group * mean**2, 0.0, None) / (n_cells - 1)[:, None]
    variance[n_cells < 2] = np.nan
    return GroupMoments(n_cells, mean, variance)


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
