"""From weights of all candidates to a table of edges, and which of them are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_causal.nn import background

if TYPE_CHECKING:
    from scvi_causal.model.vci._refine_data import RefinementData
    from scvi_causal.model.vci._refine_fit import RefineOptions
    from scvi_causal.nn import AttentionRefinement, Candidates, LinearRefinement

_MARGIN = 0.04
# in standard deviations of the noise; that somebody has written an edge down is worth a factor
_N_SD = 1.0
_STRICTER_FOR_OTHERS = 5.0


def edge_table(
    module: LinearRefinement | AttentionRefinement,
    candidates: Candidates,
    data: RefinementData,
    options: RefineOptions,
    n_edges: int | None,
    threshold: float | None,
    n_listed: int,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Edges ``source, target, weight, prior, kept``, strongest first, and the numbers that decided.

    Parameters
    ----------
    module, candidates, data, options
        The trained refinement and what it was trained on.
    n_edges, threshold
        Which edges to keep.
    n_listed
        Largest number of edges beyond the prior in the table.
    """
    weight = module.strength().cpu().numpy()
    is_prior, is_other = candidates.is_prior.numpy(), candidates.is_other.numpy()
    allowed = is_prior | is_other
    if options.form == "attention":  # self-loops are no edges of a network
        own = np.arange(candidates.n_targets) * (candidates.n_sources + 1)
        allowed[own] = False
        score, level = weight, background(options.edge_penalty, options.weight_decay)
        cut = level + (_MARGIN if threshold is None else threshold)
        kept = allowed & (score > cut)
    else:
        score = np.abs(weight)
        kept, level, cut = _above_noise(weight, candidates, threshold)
    if n_edges is not None:
        strongest = np.argsort(np.where(allowed, -score, np.inf), kind="stable")[:n_edges]
        kept = np.zeros_like(allowed)
        kept[strongest] = allowed[strongest] & (score[strongest] > 0)
    listed = allowed & is_prior | kept
    others = np.flatnonzero(allowed & ~listed)
    if len(others) > n_listed:
        others = others[np.argpartition(-score[others], n_listed)[:n_listed]]
    positions = np.concatenate([np.flatnonzero(listed), others])
    positions = positions[np.argsort(-score[positions], kind="stable")]
    nodes = data.nodes
    table = pd.DataFrame(
        {
            "source": nodes.regulators[positions % candidates.n_sources].astype(object),
            "target": nodes.genes[positions // candidates.n_sources].astype(object),
            "weight": weight[positions].astype(np.float32),
            "prior": is_prior[positions],
            "kept": kept[positions],
        }
    )
    return table, {"background": level, "threshold": cut, "n_candidates": int(allowed.sum())}


def _above_noise(
    weight: np.ndarray, candidates: Candidates, threshold: float | None
) -> tuple[np.ndarray, float, float]:
    r"""Edges whose weight stands out of those of edges that are not there.

    Nearly all other candidates are no edges, so the median of their absolute weights tells the noise. Undone is the shrinkage
    :math:`1 / (1 + (1 - q) / q) = q`, so that the two kinds of edges have one scale.

    Returns
    -------
    Which edges are kept; the noise (a standard deviation); the threshold, both on the common scale.
    """
    is_prior, is_other = candidates.is_prior.numpy(), candidates.is_other.numpy()
    plain = np.abs(weight) / np.where(is_prior, candidates.keep_prior, max(candidates.keep_other, 1e-12))
    reference = plain[is_other] if candidates.keep_other > 0 and is_other.any() else plain[is_prior]
    noise = float(np.median(reference)) / 0.6745
    n_sd = _N_SD if threshold is None else threshold
    kept = (is_prior & (plain > n_sd * noise)) | (is_other & (plain > _STRICTER_FOR_OTHERS * n_sd * noise))
    return kept, noise, n_sd * noise
