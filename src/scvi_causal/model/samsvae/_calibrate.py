"""Sizes of shifts adjusted until drawn cells move as far as the training cells did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import settings

from scvi_causal.dataloaders import get_control_mask, get_strata
from scvi_causal.model.base._condition_effects import condition_effects
from scvi_causal.model.base._drawn_effect import drawn_effect_and_slope
from scvi_causal.model.base._shrinkage import shrink_effects
from scvi_causal.model.base._sources import SourceReader

if TYPE_CHECKING:
    from scvi_causal.model.base._shrinkage import Shrunken
    from scvi_causal.model.samsvae._model import SAMSVAE

_N_ROUNDS = 3
_MOST_CELLS = 400  # per condition and round
_FEWEST_CELLS = 100
_ALL_CELLS = 60_000  # per round
_LIMITS = (0.25, 4.0)  # of all rounds together


class TrainingEffects:
    """What training cells say of each condition, and what cells that the model draws say of it.

    Parameters
    ----------
    model
        Trained.
    rows
        Training cells.
    within
        (n_rows,) codes beside batch and covariates: cells are compared with controls of the same code.

    Attributes
    ----------
    found
        Changes of the mean log1p expression of conditions in contexts.
    shrunken
        The same, less what noise explains; what tokens do to the genes that they are named after is judged apart.
    """

    def __init__(self, model: SAMSVAE, rows: np.ndarray, within: np.ndarray | None = None):
        manager = model.adata_manager
        n_genes = model.module.n_genes
        self.found = condition_effects(manager, rows, n_genes, log_normalize=True, of_logs=True, within=within)
        column = {gene: i for i, gene in enumerate(model._var_names())}
        self._target = np.array([column.get(token, -1) for token in model._vocabulary.tokens], dtype=np.int64)
        self.shrunken = self.shrink(self.found.effect)
        is_control = get_control_mask(manager)[rows]
        self._controls = rows[is_control]
        self._context = np.unique(get_strata(manager, with_batch=False)[rows], return_inverse=True)[1][is_control]
        self._model, self._reader = model, SourceReader(model, model.adata)
        self._rng = np.random.default_rng([settings.seed or 0, 5])
        self._n_cells = int(np.clip(_ALL_CELLS // len(self.found.effect), _FEWEST_CELLS, _MOST_CELLS))

    def shrink(self, effect: np.ndarray) -> Shrunken:
        """Effects (n_rows, n_genes) less what the noise of :attr:`found` explains."""
        return shrink_effects(effect, self.found.noise, self.found.dosage, self.found.context, self._target)

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """(n_rows, n_genes) effects in drawn cells, and how they rise with log shares; other cells at each call."""
        effect, slope = np.empty((2, *self.found.effect.shape))
        for row, dosage in enumerate(self.found.dosage):
            here = self._controls[self._context == self.found.context[row]]
            cells = self._rng.permutation(here if len(here) else self._controls)[: self._n_cells]
            seed = int(self._rng.integers(2**62))
            effect[row], slope[row] = drawn_effect_and_slope(self._model, self._reader, cells, dosage, seed)
        return effect, slope


@torch.inference_mode()
def calibrate_sizes(model: SAMSVAE, observed: TrainingEffects) -> np.ndarray:
    r"""Multiply the embeddings of each token by one number.

    The basal state takes a part of every effect: a small shift in a dimension costs the state of each cell less than a mask costs the
    token. What is then missing in cells that are drawn from controls is put back. With the drawn effect p of a condition, the observed
    one y, less what noise explains, and the sampling variance v of y, the number is
    :math:`(p \cdot y + \sum v) / (p \cdot p + \sum v)`: 1 where noise is all there is.

    Parameters
    ----------
    model
        Trained.
    observed
        Of its training cells.

    Returns
    -------
    (n_tokens,) the numbers.
    """
    found, noise = observed.found, observed.found.variance.sum(1)
    size = np.ones(found.dosage.shape[1])
    model.module.eval()
    for _ in range(_N_ROUNDS):
        top, bottom = np.zeros((2, len(size)))
        for row, drawn in enumerate(observed.draw()[0]):
            used = found.dosage[row] != 0
            top[used] += drawn @ observed.shrunken.effect[row] + noise[row]
            bottom[used] += drawn @ drawn + noise[row]
        change = np.where(bottom > 0, np.maximum(top, 0.0) / np.maximum(bottom, 1e-12), 1.0)
        change = np.clip(size * change, *_LIMITS) / size
        size *= change
        model.module.mechanisms.scale_embeddings(torch.from_numpy(change))
    return size
