"""What SAMS-VAE takes from the training cells before the first step: scales of its inputs, and where the decoder starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import REGISTRY_KEYS

from scvi_causal._constants import CAUSAL_KEYS, NORMALIZED_TOTAL
from scvi_causal.model.base._group_moments import group_moments, iterate_expression
from scvi_causal.model.base._ridge import ridge_on_features
from scvi_causal.model.samsvae._start import start_at_effects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scipy.sparse import csr_matrix
    from scvi.data import AnnDataManager

    from scvi_causal.model.samsvae._module import SAMSVAEModule

_DISPERSIONS = (0.2, 100.0)  # at which a gene may start


def fit_before_training(module: SAMSVAEModule, manager: AnnDataManager, rows: np.ndarray) -> None:
    """Fill buffers, and in the recommended model start the decoder at the mean and the dispersion of each gene.

    Parameters
    ----------
    module
        Fresh module.
    manager
        Manager of the data.
    rows
        Training cells.
    """
    module.cells_per_token.copy_(torch.from_numpy(count_cells(manager, rows)))
    one = np.zeros(len(rows), dtype=np.int64)
    raw = not module.options.normalize_library
    pieces = _log_counts(manager, rows) if raw else iterate_expression(manager, rows, "log1p")
    moments = group_moments(pieces, one, 1, module.n_genes)
    scale = np.sqrt(np.nan_to_num(moments.variance[0], nan=1.0))
    module.input_mean.copy_(torch.from_numpy(moments.mean[0]))
    # a gene that never varies says nothing; the published formula divides by zero there
    module.input_scale.copy_(torch.from_numpy(np.where(scale > 0, scale, 1.0)))
    if module.n_continuous:
        given = np.asarray(manager.get_from_registry(REGISTRY_KEYS.CONT_COVS_KEY), dtype=np.float64)[rows]
        spread = given.std(0)
        module.covariate_mean.copy_(torch.from_numpy(given.mean(0)))
        module.covariate_scale.copy_(torch.from_numpy(np.where(spread > 0, spread, 1.0)))
    if module.options.start_at_moments:
        _start_at_moments(module, manager, rows)
    if module.options.start_at_effects and module.mechanisms is not None:
        start_at_effects(module, manager, rows, module.options.start_size, module.options.start_odds)


def count_cells(manager: AnnDataManager, rows: np.ndarray) -> np.ndarray:
    """(n_tokens,) number of cells among ``rows`` that carry each token, whatever the dosage."""
    dosage = manager.get_from_registry(CAUSAL_KEYS.PERTURBATION).tocsr()[rows]
    return np.bincount(dosage.indices[dosage.data != 0], minlength=dosage.shape[1]).astype(np.float32)


def _log_counts(manager: AnnDataManager, rows: np.ndarray) -> Iterator[tuple[slice, csr_matrix]]:
    for part, x in iterate_expression(manager, rows, "continuous"):
        yield part, x.log1p()


def _start_at_moments(module: SAMSVAEModule, manager: AnnDataManager, rows: np.ndarray) -> None:
    """Log shares of the library and inverse dispersions from means and variances over cells."""
    one = np.zeros(len(rows), dtype=np.int64)
    moments = group_moments(iterate_expression(manager, rows, "normalized"), one, 1, module.n_genes)
    mean, variance = moments.mean[0], np.nan_to_num(moments.variance[0], nan=0.0)
    share = np.maximum(mean, 1e-3) / NORMALIZED_TOTAL
    bias = np.log(share)
    if module.decoder.rest:
        bias = np.append(bias, np.log(max(1.0 - share.sum(), 1e-3)))
    poisson = mean * NORMALIZED_TOTAL * np.mean(1.0 / _libraries(manager, rows))
    dispersion = np.clip(mean**2 / np.maximum(variance - poisson, 1e-12), *_DISPERSIONS)
    with torch.no_grad():
        module.decoder.output.bias.copy_(torch.from_numpy(bias))
        module.log_dispersion.copy_(torch.from_numpy(np.log(dispersion)))


def _libraries(manager: AnnDataManager, rows: np.ndarray) -> np.ndarray:
    if REGISTRY_KEYS.SIZE_FACTOR_KEY in manager.data_registry:
        given = np.asarray(manager.get_from_registry(REGISTRY_KEYS.SIZE_FACTOR_KEY), dtype=np.float64).ravel()[rows]
    else:
        pieces = (np.asarray(x.sum(1)).ravel() for _, x in iterate_expression(manager, rows, "continuous"))
        given = np.concatenate(list(pieces))
    return np.maximum(given, 1.0)


def fit_feature_map(module: SAMSVAEModule, features: np.ndarray, tokens: np.ndarray) -> None:
    """Learn how the shifts of seen tokens follow from their features, or that they do not: then all get the mean.

    Parameters
    ----------
    module
        Trained module.
    features
        (n, n_features) of seen tokens.
    tokens
        (n,) their columns in the vocabulary.
    """
    index = torch.from_numpy(tokens).to(module.mean_shift.device)
    shifts = module.shifts(index).detach().cpu().double().numpy()
    center, coefficients, _ = ridge_on_features(features.astype(np.float64), shifts)
    module.mean_shift.copy_(torch.from_numpy(shifts.mean(0)))
    module.feature_center.copy_(torch.from_numpy(center))
    module.feature_map.copy_(torch.from_numpy(coefficients))
