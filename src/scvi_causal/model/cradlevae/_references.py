"""Reference profiles of the artifact loss: what a typical cell of the other quality class with the same perturbation looks like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import condition_codes
from scvi_causal.model.base._group_moments import ExpressionReader

if TYPE_CHECKING:
    from scvi.data import AnnDataManager

    from scvi_causal.model.cradlevae._module import CRADLEVAEModule

N_DRAWS = 50
_ROWS = 4_096


class ReferencePools:
    """Pools of training cells that references are drawn from: one per condition and quality.

    No reference is kept per cell: cells point to pools, and a pool has one profile at a time.

    Parameters
    ----------
    manager
        Manager of the data.
    rows
        Training cells; nothing else is drawn from.
    published
        Whether every cell is referred to *failed* cells with its perturbation, as published, or to those of the other class.

    Attributes
    ----------
    pool
        (n_obs,) pool of each cell, -1 where there is none.
    other_quality
        (n_obs,) the class opposite to that of each cell: pass for a failed one, and the most frequent failure with its perturbation for
        one that passes.
    """

    def __init__(self, manager: AnnDataManager, rows: np.ndarray, published: bool):
        condition = condition_codes(csr_matrix(manager.get_from_registry(CAUSAL_KEYS.PERTURBATION)))[0]
        quality = np.asarray(manager.get_from_registry(CAUSAL_KEYS.QUALITY)).ravel().astype(np.int64)
        n_conditions, n_classes = condition.max() + 1, quality.max() + 1
        table = np.zeros((n_conditions, n_classes), dtype=np.int64)
        np.add.at(table, (condition[rows], quality[rows]), 1)
        overall = table.sum(0)
        frequent = 1 + (table[:, 1:] + overall[1:] / (overall.sum() + 1.0)).argmax(1) if n_classes > 1 else None
        self.other_quality = np.where(quality > 0, 0, 0 if frequent is None else frequent[condition])
        # published: failures of all kinds; else the very class that is the other one
        wanted = np.where(published, 1, self.other_quality)
        of_rows = np.where(published, (quality[rows] > 0).astype(np.int64), quality[rows])
        order = np.argsort(condition[rows] * n_classes + of_rows, kind="stable")
        keys = (condition[rows] * n_classes + of_rows)[order]
        found, self._starts, self._sizes = np.unique(keys, return_index=True, return_counts=True)
        self._rows = rows[order]
        asked = condition * n_classes + wanted
        place = np.minimum(np.searchsorted(found, asked), len(found) - 1)
        self.pool = np.where((found[place] == asked) & (n_classes > 1), place, -1)
        used = np.unique(self.pool[self.pool >= 0])
        renumber = np.full(len(found) + 1, -1)
        renumber[used] = np.arange(len(used))
        self.pool, self._starts, self._sizes = renumber[self.pool], self._starts[used], self._sizes[used]
        self._manager, self._published = manager, published

    def __len__(self) -> int:
        return len(self._sizes)

    def draw(self, module: CRADLEVAEModule, rng: np.random.Generator) -> np.ndarray:
        """(n_pools, n_genes) profiles as the encoder sees them, each of up to 50 cells drawn with replacement.

        The mean of log expression; as published the lower median of counts, and NaN where all of these are 0.
        """
        profiles = np.empty((len(self), module.n_genes), dtype=np.float32)
        raw = self._published or not module.options.normalize_library
        read = ExpressionReader(self._manager, "continuous" if raw else "log1p")
        n_draws = np.minimum(self._sizes, N_DRAWS)
        step = max(1, _ROWS // N_DRAWS)
        for start in range(0, len(self), step):
            pools = np.arange(start, min(start + step, len(self)))
            owner = np.repeat(pools, n_draws[pools])
            cells = self._rows[self._starts[owner] + (rng.random(len(owner)) * self._sizes[owner]).astype(np.int64)]
            x = read(cells)
            if self._published:
                ends = np.cumsum(n_draws[pools])
                for i, end in zip(pools, ends, strict=True):
                    profiles[i] = lower_median(x[end - n_draws[i] : end].toarray())
                continue
            if raw:
                x = x.log1p()
            average = csr_matrix(
                (1.0 / n_draws[owner], (owner - start, np.arange(len(owner)))), (len(pools), len(owner))
            )
            profiles[pools] = (average @ x).toarray()
        if not self._published:
            return profiles
        total = profiles.sum(1, keepdims=True)
        x = torch.from_numpy(profiles)
        expression = module.expression(x, x.sum(1, keepdim=True).clamp_min(1.0)).numpy()
        return np.where(total > 0, expression, np.nan)


def lower_median(x: np.ndarray) -> np.ndarray:
    """Median of columns, the lower of the two middle values where there are two.

    Examples
    --------
    >>> import numpy as np
    >>> lower_median(np.array([[1.0], [2.0], [3.0], [4.0]])).tolist()
    [2.0]
    """
    return np.sort(x, axis=0)[(len(x) - 1) // 2]


def set_references(module: CRADLEVAEModule, pools: ReferencePools, rng: np.random.Generator) -> None:
    """Draw profiles, and put them where the artifact loss finds them."""
    profiles = pools.draw(module, rng)
    nothing = np.isnan(profiles).any(1)
    place = np.where((pools.pool >= 0) & ~np.append(nothing, True)[pools.pool], pools.pool, -1)
    device = module.log_dispersion.device
    expression = torch.from_numpy(np.nan_to_num(profiles)).to(device)
    module.reference_expression = module.standardize(expression)
    module.reference_of_cell = torch.from_numpy(place.astype(np.int64)).to(device)
    module.other_quality_of_cell = torch.from_numpy(pools.other_quality.astype(np.int64)).to(device)
