"""What GPO-VAE takes from the training cells before the first step: its nodes, and what effects say about edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit

from scvi_causal.model.base._group_moments import iterate_expression
from scvi_causal.model.gpovae._effects import TokenEffects, token_effects
from scvi_causal.model.gpovae._evidence import (
    EdgePrior,
    learn_direct_effects,
    learn_prior,
    log_odds,
    mediated_shares,
    own_effects,
)

if TYPE_CHECKING:
    from scvi.data import AnnDataManager

    from scvi_causal.model.gpovae._module import GPOVAEModule
    from scvi_causal.model.gpovae._nodes import NodePlan, Nodes

_LARGEST_ODDS = 12.0
_OWN_SLAB = 3.0  # standard deviation of what a perturbation does to its own gene, in log ratios
_FREE_SCALE = 0.1  # standard deviation of an own node that no gene measures
_RIDGE = 0.02  # of the mean square of the effects on nodes


def fit_network(
    module: GPOVAEModule, manager: AnnDataManager, rows: np.ndarray, plan: NodePlan, prior_edges: pd.DataFrame
) -> Nodes:
    """Choose the nodes, and start masks, embeddings and loadings where the effects of the training tokens are.

    Parameters
    ----------
    module
        Fresh module.
    manager, rows
        Data and training cells.
    plan
        What is known of the nodes.
    prior_edges
        Edges ``source, target`` of a given network; may be empty.

    Returns
    -------
    The nodes.
    """
    module.typical_total.copy_(torch.tensor(_typical_total(manager, rows)))
    needs_effects = module.follows_effects or plan.listed is None
    effects = token_effects(manager, rows, module.n_genes) if needs_effects else None
    nodes = plan.nodes(None if effects is None else effects.response())
    others = module.set_nodes(torch.from_numpy(nodes.gene)).numpy()
    known = known_edges(nodes, prior_edges)
    if not module.follows_effects:
        _start_at_prior(module, known)
        return nodes
    prior = start_at_evidence(module, effects, nodes, known)
    if len(others) and module.decoder.loadings is not None:
        _start_others(module, effects, others, prior)
    return nodes


def known_edges(nodes: Nodes, edges: pd.DataFrame) -> np.ndarray | None:
    """(n_tokens, T) which pairs a given network has, ``None`` if none."""
    place = pd.Index(nodes.names)
    source, target = place.get_indexer(edges["source"].astype(str)), place.get_indexer(edges["target"].astype(str))
    inside = (source >= 0) & (source < nodes.n_tokens) & (target >= 0) & (source != target)
    if not inside.any():
        return None
    known = np.zeros((nodes.n_tokens, len(nodes.names)), dtype=bool)
    known[source[inside], target[inside]] = True
    return known


def start_at_evidence(module: GPOVAEModule, effects: TokenEffects, nodes: Nodes, known: np.ndarray | None) -> EdgePrior:
    """Masks and embeddings at their posterior given the effects; the prior is learned from these."""
    mechanisms, options = module.mechanisms, module.options
    measured = nodes.gene >= 0
    effect = np.where(measured, effects.effect[:, nodes.gene], 0.0)
    variance = np.where(measured, effects.variance[:, nodes.gene], np.inf)
    is_own = np.eye(*effect.shape, dtype=bool)
    candidates = ~is_own & np.isfinite(variance)
    probability = None if options.learn_probability else options.mask_prior
    scale = None if options.learn_scale else options.embedding_prior_scale
    prior = learn_prior(effect, variance, candidates, known, probability, scale)
    effect_logits = np.where(candidates, log_odds(effect, variance, prior.probability, prior.scale), -np.inf)
    own = np.where(measured[: nodes.n_tokens] & effects.seen, np.arange(nodes.n_tokens), -1)
    shares = np.eye(nodes.n_tokens)
    if options.indirect == "mediated":
        shares = mediated_shares(effect, variance, prior, own)
    found, prior = learn_direct_effects(effect, variance, candidates, shares, prior, known, probability)
    at_own = np.where(own >= 0, effect.diagonal(), float(module.n_measured < module.n_genes)) * effects.seen
    location = np.where(candidates, found.mean, 0.0)
    location[is_own] = at_own
    scale = np.where(candidates, found.scale, prior.scale)
    scale[is_own] = np.where(own >= 0, np.sqrt(np.minimum(variance.diagonal(), 1.0)), _FREE_SCALE)
    logits = np.where(candidates, found.logits, logit(prior.probability))
    slab = np.full(effect.shape, prior.scale)
    slab[is_own] = _OWN_SLAB
    with torch.no_grad():
        for name, value in {
            "location": location,
            "log_scale": np.log(scale),
            "mask_logits": np.clip(logits, -_LARGEST_ODDS, _LARGEST_ODDS),
            "prior_probability": prior.probability,
            "slab": slab,
            "shares": shares - np.eye(len(shares)),
            "effect": np.where(is_own, own_effects(effect, variance, own)[:, None], effect),
            "effect_logits": effect_logits,
            "noise": np.where(candidates, variance, np.inf),
        }.items():
            getattr(mechanisms, name).copy_(torch.from_numpy(np.ascontiguousarray(value)))
        mechanisms.fill_own()
    return prior


def _start_at_prior(module: GPOVAEModule, known: np.ndarray | None) -> None:
    """Masks of a given network on from the start, where nothing else says where they are."""
    if known is None:
        return
    with torch.no_grad():
        logits = module.mechanisms.mask_logits
        logits[: len(known)][torch.from_numpy(known)] = module.options.start_odds


def _start_others(module: GPOVAEModule, effects: TokenEffects, others: np.ndarray, prior: EdgePrior) -> None:
    """Loadings of the genes that are no nodes: ridge regression of their effects on those of the nodes."""
    tokens = torch.from_numpy(np.flatnonzero(effects.seen))
    with torch.no_grad():
        moved = module.mechanisms.expected_shift(tokens).double().numpy()
    y, v = effects.effect[effects.seen][:, others], effects.variance[effects.seen][:, others]
    y = expit(log_odds(y, v, float(prior.probability.mean()), prior.scale)) * y * prior.scale**2 / (prior.scale**2 + v)
    gram = moved @ moved.T
    gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)) + 1e-9 * np.eye(len(gram))
    with torch.no_grad():
        module.decoder.loadings.others.weight.copy_(torch.from_numpy(np.linalg.solve(gram, y).T @ moved))


def _typical_total(manager: AnnDataManager, rows: np.ndarray) -> float:
    """Median of the total counts of cells."""
    totals = [np.asarray(x.sum(1)).ravel() for _, x in iterate_expression(manager, rows, "continuous")]
    return float(np.median(np.concatenate(totals)))
