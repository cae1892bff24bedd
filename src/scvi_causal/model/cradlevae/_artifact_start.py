"""Where artifacts start: at the difference between failed and passing training cells of the same condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_matrix

from scvi_causal._constants import CAUSAL_KEYS
from scvi_causal.data import condition_codes
from scvi_causal.dataloaders import get_strata
from scvi_causal.model.base._condition_effects import condition_effects
from scvi_causal.model.samsvae._start import log_ratio

if TYPE_CHECKING:
    from scvi.data import AnnDataManager

    from scvi_causal.model.cradlevae._module import CRADLEVAEModule


_EMBEDDING_SCALE = -2.0  # log standard deviation of what starts at an estimate


def start_artifacts(module: CRADLEVAEModule, manager: AnnDataManager, rows: np.ndarray) -> None:
    """Start the artifacts of a fresh module: where quality is a covariate as a shift of log shares, else along a latent dimension.

    Parameters
    ----------
    module
        Module with a linear path in its decoder, whose shifts have started.
    manager, rows
        Data and training cells.
    """
    effects = artifact_effects(module, manager, rows)
    used = module.mechanisms.location.detach().abs().sum(0) > 0
    free = (~used).nonzero().squeeze(1).tolist()
    size = module.options.start_size
    with torch.no_grad():
        for kind, effect in enumerate(effects):
            if not np.abs(effect).any():
                continue
            loadings = torch.from_numpy(effect).float()
            if module.options.quality_covariate:
                place = module.first_quality_column + 1 + kind
                module.decoder.covariates.weight[: module.n_genes, place] = loadings
                module.artifacts.log_scale[kind] = _EMBEDDING_SCALE
            elif free:
                place = free.pop(0)
                module.artifacts.location[kind, place] = size
                module.artifacts.log_scale[kind] = _EMBEDDING_SCALE
                module.decoder.loadings.weight[:, place] = 0.0
                module.decoder.loadings.weight[: module.n_genes, place] = loadings / size


def artifact_effects(module: CRADLEVAEModule, manager: AnnDataManager, rows: np.ndarray) -> np.ndarray:
    """(n_kinds, n_genes) change of log shares from passing to failed cells of the same condition and stratum; 0 where there are none."""
    effects = np.zeros((module.n_kinds, module.n_genes))
    quality = np.asarray(manager.get_from_registry(CAUSAL_KEYS.QUALITY)).ravel()[rows].astype(np.int64)
    condition = condition_codes(csr_matrix(manager.get_from_registry(CAUSAL_KEYS.PERTURBATION)))[0][rows]
    group = get_strata(manager)[rows] * (condition.max() + 1) + condition
    kept = np.isin(group, group[quality == 0])
    rows, quality, condition = rows[kept], quality[kept], condition[kept]
    failed = np.flatnonzero(quality)
    if not len(failed):
        return effects
    kinds = csr_matrix((np.ones(len(failed)), (failed, quality[failed] - 1)), shape=(len(rows), module.n_kinds))
    found = condition_effects(manager, rows, module.n_genes, log_normalize=True, dosage=kinds, within=condition)
    ratio = log_ratio(found.control, found.effect, module.decoder.rest)
    weight = np.sqrt(found.n_cells)[:, None]
    return np.linalg.lstsq(found.dosage * weight, ratio * weight, rcond=1e-6)[0]
