"""The effect of a condition in cells that a model draws, as it would be measured in cells that were observed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import NORMALIZED_TOTAL

from ._request import PredictOptions
from ._scales import to_log1p
from ._walk import evaluate, library_of

if TYPE_CHECKING:
    from torch import Tensor

    from ._model import CausalModel
    from ._sources import SourceReader


def drawn_effect(
    model: CausalModel, reader: SourceReader, cells: np.ndarray, dosage: np.ndarray, seed: int
) -> np.ndarray:
    """(n_genes,) change of the mean log1p expression of control cells of counts under a dosage of the vocabulary's tokens.

    Parameters
    ----------
    model
        A model whose tokens are known, though its training need not be over.
    reader
        Of the data of the cells.
    cells
        Rows of control cells.
    dosage
        (n_tokens,)
    seed
        Of the draw.
    """
    tensors = reader.read(cells)
    library = library_of(model, tensors)
    drawn = to_log1p(_draw(model, tensors, dosage, seed), model.module.scale, library)
    return (drawn - to_log1p(tensors[REGISTRY_KEYS.X_KEY], "counts", library)).mean(0).double().cpu().numpy()


def drawn_effect_and_slope(
    model: CausalModel, reader: SourceReader, cells: np.ndarray, dosage: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`drawn_effect`, and by how much the mean log1p expression rises with the log of the expected counts; of a model of counts."""
    tensors = reader.read(cells)
    library = library_of(model, tensors)
    counts = _draw(model, tensors, dosage, seed)
    effect = to_log1p(counts, "counts", library) - to_log1p(tensors[REGISTRY_KEYS.X_KEY], "counts", library)
    slope = log1p_slope(counts, NORMALIZED_TOTAL / library)
    return effect.mean(0).double().cpu().numpy(), slope.mean(0).double().cpu().numpy()


def log1p_slope(counts: Tensor, per_count: Tensor) -> Tensor:
    r"""Numbers whose mean is the slope of the mean of :math:`f(x) = \ln(1 + k x)` in the log of the expected counts.

    For counts that are Poisson given a frailty, :math:`\partial E[f(x)] / \partial \ln \mu = E[x\,(f(x) - f(x - 1))]`.

    Parameters
    ----------
    counts
        (cells, genes) x.
    per_count
        (cells, 1) k.
    """
    before = torch.log1p(per_count * (counts - 1.0).clamp_min(0.0))
    return counts * (torch.log1p(per_count * counts) - before)


def _draw(model: CausalModel, tensors: dict[str, Tensor], dosage: np.ndarray, seed: int) -> Tensor:
    """(cells, genes) drawn cells, on the scale of the module."""
    used, device = np.flatnonzero(dosage), model.module.device
    inputs = model._get_token_inputs([model._vocabulary.tokens[i] for i in used], None)
    inputs = {key: value.to(device) for key, value in inputs.items()}
    target = torch.from_numpy(dosage[used]).float().to(device).expand(len(tensors[REGISTRY_KEYS.X_KEY]), -1)
    options = PredictOptions("log1p", sample=True, n_samples=1, seed=seed)
    return evaluate(model, tensors, target, inputs, options, torch.Generator(device).manual_seed(seed))
