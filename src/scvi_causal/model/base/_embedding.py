"""Representations of cells and of perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scvi_causal._docs import docs
from scvi_causal.data import canonical_labels

from ._request import check_rows, resolve_seed
from ._sources import SourceReader
from ._walk import step_size

if TYPE_CHECKING:
    from collections.abc import Sequence


class EmbeddingMixin:
    """``get_latent_representation`` and ``get_perturbation_embedding``."""

    @docs.dedent
    @torch.inference_mode()
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        give_mean: bool = True,
        batch_size: int | None = None,
        seed: int | None = None,
    ) -> np.ndarray:
        """Latent representation of observed cells.

        Parameters
        ----------
        %(param_query_adata)s
        indices
            Cells to represent; all by default.
        give_mean
            Posterior mean, or one draw from the posterior.
        %(param_batch_size)s
        %(param_seed)s

        Returns
        -------
        (n_cells, n_latent) float32

        Raises
        ------
        NotImplementedError
            If the model has no latent space.
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        adata = self._check_query(adata)
        rows = np.arange(adata.n_obs) if indices is None else check_rows(indices, adata.n_obs)
        self.module.eval()
        reader = SourceReader(self, adata)
        generator = torch.Generator(self.module.device).manual_seed(resolve_seed(seed))
        step = batch_size or step_size(1, len(self._var_names()))
        parts = [
            self.module.latent(reader.read(rows[i : i + step]), give_mean=give_mean, generator=generator).cpu().numpy()
            for i in range(0, len(rows), step)
        ]
        return np.concatenate(parts)

    @docs.dedent
    def get_perturbation_embedding(
        self, perturbations: Sequence[str] | None = None, features: pd.DataFrame | None = None
    ) -> AnnData:
        """One vector per perturbation, in the format of pertpy's perturbation spaces.

        Parameters
        ----------
        perturbations
            Labels; by default all conditions of the training cells.
        %(param_features)s

        Returns
        -------
        AnnData with one ``obs`` per perturbation (named by its canonical label, with the label in the perturbation column, and
        ``seen``, ``combination_seen``) and the vectors in ``X``.

        Raises
        ------
        ValueError
            If a perturbation cannot be predicted.
        NotImplementedError
            If the model has no such representation.

        Examples
        --------
        >>> import scvi_causal
        >>> from scvi_causal.model import Additive
        >>> adata = scvi_causal.data.simulate_screen(n_genes=20, seed=0).adata
        >>> Additive.setup_anndata(adata)
        >>> model = Additive(adata)
        >>> model.train()
        >>> embedding = model.get_perturbation_embedding()
        >>> embedding.n_obs == len(model.seen_conditions_)
        True
        """
        self._check_if_trained(warn=False, message=f"Train the {type(self).__name__} first: model.train().")
        vocabulary = self._get_vocabulary()
        given = [perturbations] if isinstance(perturbations, str) else perturbations
        labels = self.seen_conditions_ if given is None else [str(p) for p in given]
        labels = pd.unique(canonical_labels(labels, vocabulary.separator, vocabulary.control_categories)).astype(str)
        self._refuse_unpredictable(labels, features)
        vectors, names = self._perturbation_vectors(labels, features)
        known = self.can_predict(labels.tolist(), features)
        obs = pd.DataFrame(
            {self._setup_arg("perturbation_key"): pd.Categorical(labels)}, index=pd.Index(labels.astype(str))
        )
        obs["seen"] = known["seen"].to_numpy()
        obs["combination_seen"] = known["combination_seen"].to_numpy()
        return AnnData(
            X=np.asarray(vectors, dtype=np.float32), obs=obs, var=pd.DataFrame(index=pd.Index(names, dtype=str))
        )

    def _perturbation_vectors(
        self, labels: np.ndarray, features: pd.DataFrame | None
    ) -> tuple[np.ndarray, Sequence[str]]:
        """(n_perturbations, d) vectors and the names of the d dimensions; models that have them override this."""
        raise NotImplementedError(f"{type(self).__name__} has no representation of perturbations.")
