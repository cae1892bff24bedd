"""The effect of a condition in cells that a model draws, as it would be measured in cells that were observed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from ._request import PredictOptions
from ._scales import to_log1p
from ._walk import evaluate, library_of

if TYPE_CHECKING:
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
    used = np.flatnonzero(dosage)
    device = model.module.device
    inputs = model._get_token_inputs([model._vocabulary.tokens[i] for i in used], None)
    inputs = {key: value.to(device) for key, value in inputs.items()}
    tensors = reader.read(cells)
    library = library_of(model, tensors)
    target = torch.from_numpy(dosage[used]).float().to(device).expand(len(cells), -1)
    options = PredictOptions("log1p", sample=True, n_samples=1, seed=seed)
    generator = torch.Generator(device).manual_seed(seed)
    drawn = to_log1p(evaluate(model, tensors, target, inputs, options, generator), model.module.scale, library)
    before = to_log1p(tensors[REGISTRY_KEYS.X_KEY], "counts", library)
    return (drawn - before).mean(0).double().cpu().numpy()
