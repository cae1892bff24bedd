"""Responses adjusted until the cells that the model draws have the means that were observed in the training conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import settings

from scvi_causal.dataloaders import get_control_mask, get_strata
from scvi_causal.model.base._condition_effects import condition_effects
from scvi_causal.model.base._drawn_effect import drawn_effect
from scvi_causal.model.base._sources import SourceReader
from scvi_causal.model.sccvae._fit import response_noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi_causal.model.base._condition_effects import ConditionEffects
    from scvi_causal.model.sccvae._fit import Responses
    from scvi_causal.model.sccvae._model import SCCVAE

_N_ROUNDS = 2
_MOST_CELLS = 400  # per condition and round
_FEWEST_CELLS = 100
_ALL_CELLS = 100_000  # per round


@torch.inference_mode()
def calibrate_responses(model: SCCVAE, responses: Responses, rows: np.ndarray) -> None:
    """Add to each training condition what the mean of its drawn cells lacks, and estimate the responses again.

    The responses are estimated from the log of mean expression, while cells are compared by the mean of their logs; the two
    differ by what the dispersion does, which is known only once the cell model is trained. Training cells only.

    Parameters
    ----------
    model
        Trained, apart from this.
    responses
        Estimates from population means; refilled.
    rows
        Training cells.
    """
    module, manager = model.module, model.adata_manager
    found = condition_effects(manager, rows, module.n_genes, model._log_normalize, of_logs=True)
    controls = rows[get_control_mask(manager)[rows]]
    _, context = np.unique(get_strata(manager, with_batch=False)[rows], return_inverse=True)
    context = context[get_control_mask(manager)[rows]]
    reader = SourceReader(model, model.adata)
    rng = np.random.default_rng([settings.seed or 0, 3])
    n_cells = int(np.clip(_ALL_CELLS // len(found.effect), _FEWEST_CELLS, _MOST_CELLS))

    def draw() -> np.ndarray:
        drawn = np.empty_like(found.effect)
        for row, dosage in enumerate(found.dosage):
            here = controls[context == found.context[row]]
            cells = rng.permutation(here if len(here) else controls)[:n_cells]
            drawn[row] = drawn_effect(model, reader, cells, dosage, int(rng.integers(2**62)))
        return drawn

    module.eval()
    aim = found.effect if responses.target is None else _without_noise(model, responses, found, draw)
    for _ in range(_N_ROUNDS):
        responses.effect = responses.effect + aim - draw()
        responses.fill(module)


def _without_noise(
    model: SCCVAE, responses: Responses, found: ConditionEffects, draw: Callable[[], np.ndarray]
) -> np.ndarray:
    """(n_rows, n_genes) effects to aim at: what the network alone does, and what is left of the rest after shrinkage."""
    of_network = np.zeros_like(found.effect)
    if model._network is not None:
        responses.empty(model.module)
        of_network = draw()
        responses.fill(model.module)
    # the noise of the mean of logs enters the responses now; it is the smaller one where most cells have no count
    responses.noise = np.fmax(responses.noise, response_noise(found))
    return of_network + responses.shrink(found.effect - of_network, found).effect
