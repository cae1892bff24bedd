"""Codes of tokens that no training cell carries, from what features say about the effects of those that some do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_causal.model.base._condition_effects import condition_effects, denoise
from scvi_causal.model.base._ridge import ridge_on_features

if TYPE_CHECKING:
    from scvi_causal.model.base._condition_effects import ConditionEffects
    from scvi_causal.model.vci._model import VCI

logger = logging.getLogger(__name__)

_FEWEST_TOKENS = 3


def set_unseen_codes(model: VCI, rows: np.ndarray) -> None:
    """Fill in the mixture of :class:`~scvi_causal.model.vci._blocks.TreatmentCode` from the training cells ``rows``.

    A ridge regression of the effects of tokens on their features, its penalty chosen by leaving tokens out, predicts an effect as a
    weighted sum of those of the training tokens; the weights make the code. Where features predict no better than the mean does,
    the weights are equal.
    """
    code, tokens = model.module.treatment_code, list(model._vocabulary.tokens)
    trained = np.isin(np.asarray(tokens, dtype=str), model.seen_tokens_)
    mask = torch.from_numpy(trained).to(code.trained.device)
    code.set_mixture(mask)
    matrix, described = normalised_features(model, tokens)
    if matrix is None or trained.sum() < _FEWEST_TOKENS:
        return
    found = condition_effects(
        model.adata_manager, rows, model.module.n_genes, model._log_normalize, of_logs=model._log_normalize
    )
    effect, variance, observed = token_effects(found)
    use = np.flatnonzero(trained & described & observed)
    if len(use) < _FEWEST_TOKENS:
        return
    clean = denoise(effect[use], variance[use])
    _, _, penalty = ridge_on_features(matrix[use].astype(float), clean)
    one_hot = np.eye(len(tokens))[use]
    center, weights, _ = ridge_on_features(matrix[use].astype(float), one_hot, penalty)
    center, weights = (torch.from_numpy(array).float().to(mask.device) for array in (center, weights))
    code.set_mixture(mask, center, weights)
    logger.info("Features of %d tokens predict effects with a ridge penalty of %.3g.", len(use), penalty)


def normalised_features(model: VCI, tokens: list[str], features=None) -> tuple[np.ndarray | None, np.ndarray]:
    """(n_tokens, n_features) features of unit length, whose directions carry their meaning, and which tokens have any."""
    matrix, known = model._token_features(tokens, features)
    if matrix is None:
        return None, known
    return matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12), known


def token_effects(found: ConditionEffects) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n_tokens, n_genes) effect per unit of dosage and its variance, by precision over rows with this token alone, and which have any."""
    n_tokens, n_genes = found.dosage.shape[1], found.effect.shape[1]
    effect, variance, observed = np.zeros((n_tokens, n_genes)), np.ones((n_tokens, n_genes)), np.zeros(n_tokens, bool)
    alone = (found.dosage != 0).sum(1) == 1
    for token in range(n_tokens):
        mine = np.flatnonzero(alone & (found.dosage[:, token] != 0))
        if not len(mine):
            continue
        dose = found.dosage[mine, token][:, None]
        weight = dose**2 / np.maximum(found.variance[mine].mean(1, keepdims=True), 1e-12)
        share = weight / weight.sum()
        effect[token] = (share * found.effect[mine] / dose).sum(0)
        variance[token] = (share**2 * found.variance[mine] / dose**2).sum(0)
        observed[token] = True
    return effect, variance, observed
