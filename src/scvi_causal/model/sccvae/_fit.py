"""What is estimated before training from population means, and after it from the learned responses."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_causal.dataloaders import get_control_mask
from scvi_causal.model.base._condition_effects import ConditionEffects, condition_effects, denoise
from scvi_causal.model.base._group_moments import group_moments, iterate_expression
from scvi_causal.model.base._ridge import left_out_residuals, ridge_on_features
from scvi_causal.model.base._shrinkage import Shrunken, shrink_effects
from scvi_causal.model.sccvae._features import expression_features
from scvi_causal.model.sccvae._moments import (
    context_axes,
    factorise,
    ridge_responses,
)
from scvi_causal.model.sccvae._network import fit_network

if TYPE_CHECKING:
    from scvi_causal.model.sccvae._model import SCCVAE
    from scvi_causal.model.sccvae._module import SCCVAEModule

logger = logging.getLogger(__name__)


def fit_before_training(model: SCCVAE, rows: np.ndarray) -> Responses | None:
    """Fill in features, axes of the cell state, network and programmes from the training cells ``rows``.

    Returns
    -------
    What the responses were estimated from; ``None`` for the published model, which estimates nothing beforehand.
    """
    manager = model.adata_manager
    controls = rows[get_control_mask(manager)[rows]]
    if len(controls) == len(rows):
        raise ValueError(
            f"None of the {len(rows):,} training cells is perturbed: there is no effect to learn. Check the split: "
            "perturbed cells have to be among 'train'."
        )
    if not model._has_features():
        model.gene_features_ = expression_features(manager, controls, model._n_components, model._log_normalize)
    if model._preset == "paper":
        matrix, _ = model._coded_features(list(model._vocabulary.tokens))
        model.module.token_features.copy_(torch.from_numpy(matrix.astype(np.float32)))
        return None
    _start_decoder_at_mean(model, controls)
    return _fit_responses(model, rows)


def _start_decoder_at_mean(model: SCCVAE, controls: np.ndarray) -> None:
    """Let the decoder start at the mean expression of the controls, which saves it the first epochs."""
    module = model.module
    scale = "normalized" if model._log_normalize else "continuous"
    pieces = iterate_expression(model.adata_manager, controls, scale)
    moments = group_moments(pieces, np.zeros(len(controls), dtype=np.int64), 1, module.n_genes)
    mean, variance = moments.mean[0], np.nan_to_num(moments.variance[0], nan=1.0)
    # softplus of the log is log1p: see SCCVAEModule.decode
    start = np.log(mean + 1e-3) if model._log_normalize else mean
    with torch.no_grad():
        module.decoder_output.bias.copy_(torch.from_numpy(start))
        if module.gene_likelihood == "normal" and not model._log_normalize:
            module.log_dispersion.copy_(torch.from_numpy(np.log(variance + 1e-4)))


@dataclass
class Responses:
    """Responses estimated from population means, and what they were estimated from.

    Parameters
    ----------
    found
        Contrasts of the training conditions.
    state
        (n_rows, n_state) place of the context of each row on the axes of the cell state.
    effect
        (n_rows, n_genes) effects that programmes have to explain: what the network does not.
    noise
        (n_tokens, n_genes) sampling variance of the response of each token; NaN for tokens that no training cell has.
    target
        (n_tokens,) gene that each token targets, or -1; ``None`` for estimates that are not shrunk.
    """

    found: ConditionEffects
    state: np.ndarray
    effect: np.ndarray
    noise: np.ndarray
    target: np.ndarray | None

    def shrink(self, effect: np.ndarray, found: ConditionEffects) -> Shrunken:
        """Effects without what the noise of ``found`` explains, see :func:`shrink_effects`."""
        return shrink_effects(effect, found.noise, found.dosage, found.context, self.target)

    def fill(self, module: SCCVAEModule) -> None:
        """Estimate the programmes of the module."""
        response, slope = ridge_responses(self.found.dosage, self.state, self.effect, self.found.n_cells)
        activity, slopes, loadings = factorise(response, slope, module.n_programmes)
        _copy(module, loadings=loadings, programme_shift=activity, programme_state=slopes)

    @staticmethod
    def empty(module: SCCVAEModule) -> None:
        """Leave only the network."""
        _copy(module, programme_shift=np.zeros(1), programme_state=np.zeros(1))


def _fit_responses(model: SCCVAE, rows: np.ndarray) -> Responses:
    module = model.module
    found = condition_effects(model.adata_manager, rows, module.n_genes, model._log_normalize)
    center, axes = context_axes(found.contexts, module.n_state)
    state = (found.contexts[found.context] - center) @ axes
    response, _ = ridge_responses(found.dosage, state, found.effect, found.n_cells)
    seen = (found.dosage != 0).any(0)
    noise = response_noise(found)
    usable = np.where(seen[:, None], response, np.nan)
    explained = fit_network(module, usable, noise, found.control.mean(0), _prior_weight(model))
    target = _target_genes(model) if model._shrink_responses else None
    responses, error = Responses(found, state, found.effect - found.dosage @ explained, noise, target), noise
    if target is not None:
        # what the network explains is left as it is: it has penalties of its own
        shrunken = responses.shrink(responses.effect, found)
        responses.effect, error = shrunken.effect, shrunken.variance(noise)
    _copy(module, state_center=center, state_axes=axes, response_error=np.sqrt(np.nan_to_num(error)))
    responses.fill(module)
    return responses


def response_noise(found: ConditionEffects) -> np.ndarray:
    """(n_tokens, n_genes) sampling variance of the responses; NaN for tokens that no row has."""
    noise = np.full((found.dosage.shape[1], found.effect.shape[1]), np.nan)
    for token in np.flatnonzero((found.dosage != 0).any(0)):
        # about that of its most precise row
        mine = found.dosage[:, token] != 0
        noise[token] = 1.0 / (1.0 / np.maximum(found.variance[mine], 1e-12)).sum(0)
    return noise


def _target_genes(model: SCCVAE) -> np.ndarray:
    """(n_tokens,) column of the measured gene of each token's name, or -1."""
    column = {gene: i for i, gene in enumerate(model._var_names())}
    return np.array([column.get(token, -1) for token in model._vocabulary.tokens], dtype=np.int64)


@torch.no_grad()
def _copy(module: SCCVAEModule, **arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        getattr(module, name).copy_(torch.from_numpy(np.ascontiguousarray(array)))


def _prior_weight(model: SCCVAE) -> np.ndarray:
    return np.zeros(0, dtype=np.float32) if model._network is None else model._network.weight


@torch.no_grad()
def fit_feature_map(model: SCCVAE, noise: np.ndarray | torch.Tensor) -> None:
    """Learn how responses follow from features, from the training tokens; what noise explains is left out first.

    Parameters
    ----------
    model
        With its responses.
    noise
        (n_tokens, n_genes) sampling variance of the responses, as if nothing had been shrunk: what shrinkage left of noise is in the
        mean over tokens as well, and would count for as many agreeing tokens.
    """
    module = model.module
    tokens = list(model.seen_tokens_)
    index = [model._vocabulary.index(token) for token in tokens]
    loadings = module.loadings.double().cpu().numpy()
    shift = module.programme_shift[index].double().cpu().numpy()
    state = module.programme_state[index].double().cpu().numpy()
    # an unseen token is predicted from what the seen ones share, without the noise of each
    clean = denoise(shift @ loadings, np.asarray(torch.as_tensor(noise).cpu(), dtype=float)[index])
    shift = clean @ np.linalg.pinv(loadings)
    outputs = np.concatenate([shift, state.reshape(len(tokens), -1)], axis=1)
    module.unseen_response.copy_(torch.from_numpy(outputs.mean(0)))
    # before features: how far one token is from the mean of the others
    n = len(tokens)
    module.unseen_error.copy_(torch.from_numpy(np.sqrt(((clean - clean.mean(0)) ** 2).mean(0)) * n / max(n - 1, 1)))
    matrix, known = model._coded_features(tokens)
    if known.sum() < 3:
        return
    described = matrix[known].astype(float)
    # genes, not programmes, are what an error is made in
    _, _, penalty = ridge_on_features(described, clean[known])
    center, coefficients, _ = ridge_on_features(described, outputs[known], penalty)
    module.feature_center.copy_(torch.from_numpy(center))
    module.feature_map.copy_(torch.from_numpy(coefficients))
    module.unseen_error.copy_(
        torch.from_numpy(np.sqrt((left_out_residuals(described, clean[known], penalty) ** 2).mean(0)))
    )
    logger.info("Features of %d tokens predict responses with a ridge penalty of %.3g.", known.sum(), penalty)
