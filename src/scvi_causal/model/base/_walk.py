"""The walk over the cells: chunk by chunk, with random numbers that belong to the call and to nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from ._scales import convert
from ._sources import SourceReader

if TYPE_CHECKING:
    from typing import Any

    import pandas as pd
    from scipy.sparse import csr_matrix
    from torch import Tensor

    from ._model import CausalModel
    from ._request import PredictOptions, Request

# beyond this many target tokens, a chunk hands the module only those that occur in it
_MANY_TOKENS = 64


class Tokens:
    """Inputs of the target tokens of a call, and the dosages of a chunk over them."""

    def __init__(self, model: CausalModel, tokens: tuple[str, ...], features: pd.DataFrame | None):
        device = model.module.device
        self.inputs = {key: value.to(device) for key, value in model._get_token_inputs(list(tokens), features).items()}
        self._few = len(tokens) <= _MANY_TOKENS
        self._device = device

    def take(self, *dosages: csr_matrix) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Dense dosages of a chunk, over one set of tokens, and the inputs of these tokens."""
        inputs = self.inputs
        if not self._few:
            used = np.unique(np.concatenate([dosage.indices for dosage in dosages]))
            dosages = [dosage[:, used] for dosage in dosages]
            place = torch.from_numpy(used.astype(np.int64)).to(self._device)
            inputs = {key: value[place] for key, value in inputs.items()}
        return [torch.from_numpy(dosage.toarray()).to(self._device) for dosage in dosages], inputs


def walk(
    model: CausalModel,
    request: Request,
    options: PredictOptions,
    covariates: dict[str, Any] | None,
    features: pd.DataFrame | None,
    batch_size: int | None,
) -> dict[str, np.ndarray]:
    """Predict all rows of a request.

    Returns
    -------
    ``""``: (n, n_genes) float32 prediction; with several draws also ``"_std"``, ``"_q05"``, ``"_q95"``.
    """
    model.module.eval()
    rows = request.sources.rows
    reader = SourceReader(model, request.sources.adata, covariates)
    tokens = Tokens(model, request.targets.tokens, features)
    # one generator per draw, which goes on from chunk to chunk: see CausalModule.counterfactual
    seeds = np.random.SeedSequence([options.seed, 2]).generate_state(options.n_samples, np.uint64)
    generators = [torch.Generator(model.module.device).manual_seed(int(seed >> 1)) for seed in seeds]
    names = ["", "_std", "_q05", "_q95"] if options.n_samples > 1 else [""]
    arrays = {name: np.empty((len(rows), len(model._var_names())), dtype=np.float32) for name in names}
    step = batch_size or step_size(options.n_samples, len(model._var_names()))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        tensors = reader.read(rows[part])
        dosages = [request.targets.dosage[part]]
        if options.output == "delta":
            dosages.append(request.reference.dosage[part])
        dosages, inputs = tokens.take(*dosages)
        library = library_of(model, tensors)
        draws = torch.stack([predict_chunk(model, tensors, dosages, inputs, library, options, g) for g in generators])
        for name, value in summarise(draws, options.sample).items():
            arrays[name][part] = value.cpu().numpy()
    return arrays


def step_size(n_samples: int, n_genes: int) -> int:
    """Cells per step: as many as are fast, as few as keep the draws of a step within 256 MB."""
    return int(np.clip(2**26 // (n_samples * n_genes), 16, 512))


def library_of(model: CausalModel, tensors: dict[str, Tensor]) -> Tensor:
    """(cells, 1) library of source cells: the size factor where one is registered, else their own counts."""
    if REGISTRY_KEYS.SIZE_FACTOR_KEY in tensors:
        library = tensors[REGISTRY_KEYS.SIZE_FACTOR_KEY].reshape(-1, 1).float()
    else:
        library = tensors[REGISTRY_KEYS.X_KEY].sum(1, keepdim=True)
    if model.module.scale != "continuous" and not bool((library > 0).all()):
        raise ValueError(
            f"{int((~(library > 0)).sum())} source cells have no counts, and so no library to predict on. Remove them, e.g. "
            "with scanpy.pp.filter_cells(adata, min_counts=1)."
        )
    return library


def predict_chunk(
    model: CausalModel,
    tensors: dict[str, Tensor],
    dosages: list[Tensor],
    inputs: dict[str, Tensor],
    library: Tensor,
    options: PredictOptions,
    generator: torch.Generator,
) -> Tensor:
    """(cells, genes) one draw of a chunk as the user asked for it; a second dosage is what ``"delta"`` is taken against."""
    scale = model.module.scale
    before = generator.get_state()
    target = evaluate(model, tensors, dosages[0], inputs, options, generator)
    reference = None
    if len(dosages) > 1:
        generator.set_state(before)  # common random numbers
        reference = evaluate(model, tensors, dosages[1], inputs, options, generator)
        # a rejection sampler uses more or fewer numbers for one cell, which shifts those of the next: where nothing changes,
        # nothing may differ
        unchanged = (dosages[0] == dosages[1]).all(1, keepdim=True)
        reference = torch.where(unchanged, target, reference)
    return convert(
        target, scale, options.output, library, reference=reference, whole=options.sample, generator=generator
    )


def evaluate(
    model: CausalModel,
    tensors: dict[str, Tensor],
    dosage: Tensor,
    inputs: dict[str, Tensor],
    options: PredictOptions,
    generator: torch.Generator,
) -> Tensor:
    """(cells, genes) mean, or a draw, on the scale of the module."""
    # torch distributions take no generator: the global one is borrowed, seeded from ours, and given back as it was
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        torch.manual_seed(int(seed))
        output = model.module.counterfactual(
            tensors,
            dosage,
            inputs,
            sample_latent=options.sample or options.n_samples > 1,
            sample_parameters=options.n_samples > 1,
            generator=generator,
        )
        if options.sample and output.distribution is not None:
            return output.distribution.sample()
        return output.mean


def summarise(draws: Tensor, sample: bool) -> dict[str, Tensor]:
    """Prediction and its spread from (n_samples, cells, genes) draws."""
    if len(draws) == 1:
        return {"": draws[0]}
    found = {"": draws[0] if sample else draws.mean(0), "_std": draws.std(0)}
    ordered = draws.sort(0).values
    return found | {"_q05": _quantile(ordered, 0.05), "_q95": _quantile(ordered, 0.95)}


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """Quantile of values sorted along the first dimension; torch's own refuses tensors of more than 16 million."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low)
