"""Cells that the model generates from nothing but a label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from scvi_causal._constants import UNS_KEY
from scvi_causal._docs import docs
from scvi_causal.model.base._provenance import provenance
from scvi_causal.model.base._request import resolve_seed
from scvi_causal.model.base._seeded import seeded
from scvi_causal.model.base._sources import SourceReader, registered_covariates

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_NUMBERS = 2**22  # in the draws of all shifts at once


class GenerationMixin:
    """``sample_cells``."""

    @docs.dedent
    def sample_cells(
        self,
        perturbations: str | Sequence[str] | None = None,
        n_cells: int = 100,
        *,
        library: float | None = None,
        covariates: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Generate cells: basal states from the prior, masks and embeddings from what is believed of them, counts from both.

        Nothing of an observed cell is in them but its library and its covariates, which those of randomly chosen training cells are.

        Parameters
        ----------
        perturbations
            Labels; by default all conditions of the training cells.
        n_cells
            Number of cells of each.
        library
            Library of every cell, instead of those of training cells: its counts, or the size factor where one is registered.
        %(param_covariates)s
        %(param_seed)s

        Returns
        -------
        AnnData (perturbations * n_cells cells) of counts, sparse; ``obs`` has the perturbation, covariates, and the library: in the column
        of the size factor where one is registered, else in ``library``.

        Raises
        ------
        ValueError
            If a perturbation cannot be predicted, or the model was loaded without its training data.
        """
        adata = self._generation_data()
        return generate(self, adata, self._generation_rows(adata), perturbations, n_cells, library, covariates, seed)

    def _generation_data(self) -> AnnData:
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        return self._attached_data()

    def _attached_data(self) -> AnnData:
        """The data of the model, whose libraries, covariates and control cells are needed."""
        if self.adata is None:
            name = type(self).__name__
            raise ValueError(
                f"This {name} was loaded without data, and the answer starts from libraries, covariates or control cells of its training "
                f"data: load it with these, {name}.load(folder, adata=adata)."
            )
        return self._check_query(None)

    def _generation_rows(self, adata: AnnData) -> np.ndarray:
        """Cells that libraries and covariates are taken from."""
        return np.sort(np.asarray(self.train_indices)) if self._is_training_data(adata) else np.arange(adata.n_obs)


@torch.inference_mode()
def generate(model, adata, rows, perturbations, n_cells, library, covariates, seed) -> AnnData:
    """See :meth:`GenerationMixin.sample_cells`; libraries and covariates are those of ``rows`` of ``adata``."""
    if n_cells < 1:
        raise ValueError(f"n_cells={n_cells}: pass at least 1.")
    if library is not None and not library > 0:
        raise ValueError(f"library={library}: pass a positive number of counts, or None for those of training cells.")
    labels = model.seen_conditions_.tolist() if perturbations is None else model._effect_labels(perturbations)
    labels, dosage = model._label_dosages(labels)
    module, seed = model.module.eval(), resolve_seed(seed)
    reader, rng = SourceReader(model, adata, covariates), np.random.default_rng([seed, 7])
    chosen = rng.choice(rows, (len(labels), n_cells))
    counts: list[list] = [[] for _ in labels]
    step = int(np.clip(_MOST_NUMBERS // max(module.n_tokens * module.n_latent, module.n_genes), 1, 512))
    with seeded(seed, module.device):
        for start in range(0, n_cells, step):
            part = slice(start, min(start + step, n_cells))
            drawn = module.draw_all(part.stop - part.start)  # the same for all labels
            for i, row in enumerate(dosage):
                tensors = reader.read(chosen[i, part])
                counts[i].append(_draw_cells(module, tensors, row, drawn, library))
    x = vstack([piece for pieces in counts for piece in pieces]).tocsr()
    obs = _describe(model, adata, np.repeat(labels, n_cells), chosen.ravel(), covariates)
    size_factor = model._setup_arg("size_factor_key")
    if library is not None:
        obs[size_factor or "library"] = float(library)
    elif size_factor is not None:
        obs[size_factor] = adata.obs[size_factor].to_numpy()[chosen.ravel()]
    else:
        obs["library"] = np.asarray(x.sum(1)).ravel()
    info = provenance(
        model=type(model).__name__,
        target=np.unique(labels.astype(str)),
        output="counts",
        n_cells=n_cells,
        seed=seed,
        library="of training cells" if library is None else float(library),
        covariates=", ".join(f"{name}={value}" for name, value in (covariates or {}).items()),
    )
    return AnnData(x, obs, adata.var.copy(), uns={UNS_KEY: {"sample_cells": info}})


def _draw_cells(module, tensors, dosage, drawn, library) -> csr_matrix:
    """Counts of cells under one dosage (n_tokens,), a draw of the globals each."""
    size = module.library(tensors)
    size = size if library is None else torch.full_like(size, library)
    z = torch.randn(len(size), module.n_latent, device=size.device)
    condition = module.condition_from(dosage.expand(len(size), -1), drawn, tensors)
    remainder = module.remainder_of(dosage[None])
    mean = module.decode(z, condition, module.covariates(tensors), size, remainder)
    rate = torch._standard_gamma(module.dispersion.expand_as(mean)) * mean / module.dispersion
    return csr_matrix(torch.poisson(rate).cpu().numpy())


def _describe(model, adata: AnnData, labels: np.ndarray, cells: np.ndarray, covariates: dict | None) -> pd.DataFrame:
    obs = pd.DataFrame(index=[f"sample_{i}" for i in range(len(labels))])
    obs[model._setup_arg("perturbation_key")] = pd.Categorical(labels.astype(str))
    categorical, continuous = registered_covariates(model)
    for name in [*categorical, *continuous]:
        obs[name] = (covariates or {}).get(name, adata.obs[name].to_numpy()[cells])
    return obs
