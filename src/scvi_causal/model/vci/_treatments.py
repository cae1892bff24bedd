"""The treatment table: what training cells received, what a counterfactual asks for, and what was observed of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import condition_codes
from scvi_causal.dataloaders import get_strata
from scvi_causal.model.base._condition_effects import condition_effects
from scvi_causal.model.base._group_moments import group_moments, iterate_expression
from scvi_causal.model.base._shrinkage import shrink_effects

if TYPE_CHECKING:
    from scvi.data import AnnDataManager


class TreatmentTable(nn.Module):
    """Treatments of the training cells, how often each is asked for in each stratum, and moments of the observed groups.

    Nothing in here is learned or saved: it is made anew before each training.

    Parameters
    ----------
    dosage
        (n_treatments, n_tokens)
    frequency
        (n_strata + 1, n_treatments) how often each is drawn; the last row is for strata that training has not seen.
    group
        (n_strata + 1, n_treatments) observed group (stratum and treatment), or -1.
    mean, variance
        (n_groups, n_genes) of its cells on the scale of the distribution loss; the variance divided by their number.
    stratum_of_cell, treatment_of_cell
        (n_obs,) of all cells of the AnnData; the last stratum, and -1, for what training has not seen.
    """

    def __init__(
        self,
        dosage: np.ndarray,
        frequency: np.ndarray,
        group: np.ndarray,
        mean: np.ndarray,
        variance: np.ndarray,
        stratum_of_cell: np.ndarray,
        treatment_of_cell: np.ndarray,
    ):
        super().__init__()
        cumulative = np.cumsum(frequency, 1)
        arrays = {
            "dosage": dosage.astype(np.float32),
            "cumulative": (cumulative / cumulative[:, -1:]).astype(np.float32),
            "group": group,
            "mean": mean.astype(np.float32),
            "variance": variance.astype(np.float32),
            "stratum_of_cell": stratum_of_cell,
            "treatment_of_cell": treatment_of_cell,
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)), persistent=False)
        self.n_treatments = len(dosage)

    def draw(self, stratum: Tensor, cells_per_target: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """(cells,) treatment to ask for, drawn from those of the stratum of each cell.

        Parameters
        ----------
        stratum
            (cells,)
        cells_per_target
            Cells of a stratum that share a target, so that their predictions are a population.
        generator
            Source of randomness; torch's own by default.
        """
        slot = share_slots(stratum, cells_per_target)
        uniform = torch.rand(int(slot.max()) + 1, generator=generator, device=stratum.device)[slot]
        place = torch.searchsorted(self.cumulative[stratum], uniform[:, None], right=True).squeeze(1)
        return place.clamp_max(self.n_treatments - 1)

    def draw_from_batch(
        self, stratum: Tensor, treatment: Tensor, cells_per_target: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """(cells,) treatment to ask for: what another cell of the same stratum in this batch received."""
        slot = share_slots(stratum, cells_per_target)
        n_slots = int(slot.max()) + 1
        of_slot = torch.zeros(n_slots, dtype=stratum.dtype, device=stratum.device).scatter_(0, slot, stratum)
        allowed = (of_slot[:, None] == stratum[None]) & (treatment >= 0)[None]
        weight = allowed.float() + 1e-20  # where nobody is allowed, anybody: no group is observed then
        member = torch.multinomial(weight, 1, generator=generator).squeeze(1)
        return treatment[member].clamp_min(0)[slot]


def share_slots(stratum: Tensor, cells_per_slot: int) -> Tensor:
    """(cells,) slot of each cell: about ``cells_per_slot`` cells of one stratum share one.

    Examples
    --------
    >>> import torch
    >>> share_slots(torch.tensor([0, 1, 0, 0, 0, 1]), 2).tolist()
    [0, 2, 1, 0, 1, 2]
    """
    order = torch.argsort(stratum, stable=True)
    _, inverse, counts = torch.unique(stratum, return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts[inverse[order]]
    n_slots = (counts // cells_per_slot).clamp_min(1)
    first = n_slots.cumsum(0) - n_slots
    return first[inverse] + rank % n_slots[inverse]


def build_table(
    manager: AnnDataManager,
    rows: np.ndarray,
    n_genes: int,
    scale: str,
    treatments: str,
    include_control: bool,
    excluded: np.ndarray | None = None,
    shrink: bool = False,
    target_gene: np.ndarray | None = None,
) -> TreatmentTable:
    """Treatment table of training cells.

    Parameters
    ----------
    manager
        Of the registered AnnData.
    rows
        Training cells.
    n_genes
        Number of genes.
    scale
        Of the moments; see :class:`~scvi_causal.model.base._group_moments.ExpressionReader`.
    treatments
        ``"observed"``: a stratum is asked for what was observed in it, as often; ``"any"``: for anything, as often as it
        was observed anywhere; ``"published"``: the same without control.
    include_control
        Whether control is a treatment.
    excluded
        (n_obs,) cells whose treatment may not be asked for.
    shrink
        Whether differences of groups are shrunk as far as sampling noise explains them, see
        :func:`~scvi_causal.model.base._shrinkage.shrink_effects`.
    target_gene
        (n_tokens,) gene that each token targets, or -1; for the shrinkage.

    Raises
    ------
    ValueError
        If nothing is left to ask for.
    """
    dosage = csr_matrix(manager.get_from_registry(CAUSAL_KEYS.PERTURBATION)).copy()
    dosage.data = np.nan_to_num(dosage.data)
    codes, conditions = condition_codes(dosage)
    seen, treatment = np.unique(codes[rows], return_inverse=True)
    place = np.full(conditions.shape[0], -1)
    place[seen] = np.arange(len(seen))
    strata_seen, stratum = np.unique(get_strata(manager)[rows], return_inverse=True)
    strata = get_strata(manager)
    found = np.minimum(np.searchsorted(strata_seen, strata), len(strata_seen) - 1)
    stratum_of_cell = np.where(strata_seen[found] == strata, found, len(strata_seen))

    n_strata, n_treatments = len(strata_seen), len(seen)
    keys, groups = np.unique(stratum * n_treatments + treatment, return_inverse=True)
    group = np.full((n_strata + 1) * n_treatments, -1)
    group[keys] = np.arange(len(keys))
    moments = group_moments(iterate_expression(manager, rows, scale), groups, len(keys), n_genes)
    variance = np.nan_to_num(moments.variance) * ((moments.n_cells - 1) / moments.n_cells)[:, None]

    counts = np.zeros((n_strata + 1) * n_treatments)
    counts[keys] = moments.n_cells
    counts = counts.reshape(n_strata + 1, n_treatments)
    table = conditions[seen].toarray()
    mean, group = moments.mean, group.reshape(n_strata + 1, n_treatments)
    if shrink and (table != 0).any() and (table == 0).all(1).any():
        contexts = get_strata(manager, with_batch=False)[rows]
        mean = _shrunken_means(manager, rows, scale, mean, group, table, stratum, contexts, target_gene)
    allowed = np.ones(n_treatments, dtype=bool) if include_control else (table != 0).any(1)
    if excluded is not None:
        allowed &= ~np.isin(seen, np.unique(codes[excluded]))
    if not allowed.any():
        raise ValueError(
            "The training cells offer no counterfactual treatment: all of them are controls, or have labels that contain the name of "
            "a control. Check the split, or pass include_control=True and counterfactual_treatments='any'."
        )
    counts = counts * allowed
    pooled = counts.sum(0)
    frequency = counts if treatments == "observed" else np.broadcast_to(pooled, counts.shape).copy()
    frequency[frequency.sum(1) == 0] = pooled
    return TreatmentTable(
        table,
        frequency,
        group,
        mean,
        variance,
        stratum_of_cell,
        place[codes],
    )


def _shrunken_means(
    manager: AnnDataManager,
    rows: np.ndarray,
    scale: str,
    mean: np.ndarray,
    group: np.ndarray,
    table: np.ndarray,
    stratum: np.ndarray,
    contexts: np.ndarray,
    target_gene: np.ndarray | None,
) -> np.ndarray:
    """(n_groups, n_genes) means in which each treatment differs from the control of its stratum by the shrunken effect.

    Effects are those of a context (categorical covariates), which the batches of it share. A combination too rare for an effect of its own
    has the sum of those of its tokens.
    """
    found = condition_effects(manager, rows, mean.shape[1], scale == "log1p", of_logs=scale == "log1p")
    effect = shrink_effects(found.effect, found.noise, found.dosage, found.context, target_gene).effect
    control = int(np.flatnonzero((table == 0).all(1))[0])
    of_condition = {
        (int(c), _carried(row)): change for c, row, change in zip(found.context, found.dosage, effect, strict=True)
    }
    _, context = np.unique(contexts, return_inverse=True)
    context_of_stratum = np.zeros(len(group), dtype=np.int64)
    context_of_stratum[stratum] = context
    shrunken = mean.copy()
    for s, t in zip(*np.nonzero(group >= 0), strict=True):
        where, carried = int(context_of_stratum[s]), _carried(table[t])
        parts = [carried] if (where, carried) in of_condition else [(pair,) for pair in carried]
        known = [of_condition.get((where, part)) for part in parts]
        if t != control and group[s, control] >= 0 and all(change is not None for change in known):
            shrunken[group[s, t]] = mean[group[s, control]] + sum(known)
    return shrunken


def _carried(dosage: np.ndarray) -> tuple[tuple[int, float], ...]:
    """Tokens of a condition, each with its dosage."""
    return tuple((int(token), float(dosage[token])) for token in np.flatnonzero(dosage))
