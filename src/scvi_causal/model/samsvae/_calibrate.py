"""Sizes of shifts adjusted until drawn cells move as far as the training cells did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import settings

from scvi_causal.dataloaders import get_control_mask, get_strata
from scvi_causal.model.base._condition_effects import condition_effects
from scvi_causal.model.base._drawn_effect import drawn_effect
from scvi_causal.model.base._shrinkage import shrink_effects
from scvi_causal.model.base._sources import SourceReader

if TYPE_CHECKING:
    from scvi_causal.model.samsvae._model import SAMSVAE

_N_ROUNDS = 3
_MOST_CELLS = 400  # per condition and round
_FEWEST_CELLS = 100
_ALL_CELLS = 60_000  # per round
_LIMITS = (0.25, 4.0)  # of all rounds together


@torch.inference_mode()
def calibrate_sizes(model: SAMSVAE, rows: np.ndarray) -> np.ndarray:
    r"""Multiply the embeddings of each token by one number.

    The basal state takes a part of every effect: a small shift in a dimension costs the state of each cell less than a mask costs the
    token. What is then missing in cells that are drawn from controls is put back. With the drawn effect p of a condition, the observed
    one y, less what noise explains, and the sampling variance v of y, the number is
    :math:`(p \cdot y + \sum v) / (p \cdot p + \sum v)`: 1 where noise is all there is.

    Parameters
    ----------
    model
        Trained.
    rows
        Training cells.

    Returns
    -------
    (n_tokens,) the numbers.
    """
    module, manager = model.module, model.adata_manager
    found = condition_effects(manager, rows, module.n_genes, log_normalize=True, of_logs=True)
    aim = shrink_effects(found.effect, found.noise, found.dosage, found.context).effect
    noise = found.variance.sum(1)
    is_control = get_control_mask(manager)[rows]
    controls = rows[is_control]
    context = np.unique(get_strata(manager, with_batch=False)[rows], return_inverse=True)[1][is_control]
    reader, rng = SourceReader(model, model.adata), np.random.default_rng([settings.seed or 0, 5])
    n_cells = int(np.clip(_ALL_CELLS // len(aim), _FEWEST_CELLS, _MOST_CELLS))
    size = np.ones(found.dosage.shape[1])
    module.eval()
    for _ in range(_N_ROUNDS):
        top, bottom = np.zeros((2, len(size)))
        for row, dosage in enumerate(found.dosage):
            here = controls[context == found.context[row]]
            cells = rng.permutation(here if len(here) else controls)[:n_cells]
            drawn = drawn_effect(model, reader, cells, dosage, int(rng.integers(2**62)))
            used = dosage != 0
            top[used] += drawn @ aim[row] + noise[row]
            bottom[used] += drawn @ drawn + noise[row]
        change = np.where(bottom > 0, np.maximum(top, 0.0) / np.maximum(bottom, 1e-12), 1.0)
        change = np.clip(size * change, *_LIMITS) / size
        size *= change
        module.mechanisms.scale_embeddings(torch.from_numpy(change))
    return size
