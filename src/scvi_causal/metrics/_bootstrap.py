"""Bootstrap of the noise ceiling for the numbers on means, in matrix form: every sample of cells is one row of weights.

A plain bootstrap of a half is noisier than the half (the noise of the data and that of the drawing), so correlations would be
lower in every sample, and spread less. Here the samples scatter around a mean whose effect was shrunk by what noise adds to its
length: signal and noise are then as large as in the data. Both halves scatter around the same mean, each by its own cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from ._arrays import as_cells
from ._registry import METRICS

if TYPE_CHECKING:
    from ._moments import Moments
    from ._observed import ObservedPopulation


def shrunk_mean(moments: Moments, reference: np.ndarray) -> np.ndarray:
    """(genes,) mean whose squared distance to the reference is what it is without sampling noise."""
    effect = moments.mean - reference
    length = (effect**2).sum()
    share = 1 - moments.noise.sum() / length if length > 0 else 0.0
    return reference + effect * np.sqrt(max(share, 0.0))


def bootstrap_scores(
    population: ObservedPopulation,
    predicted,
    predicted_weights,
    observed_weights,
    centre,
    *,
    average=None,
    exclude=None,
) -> dict[str, np.ndarray]:
    """Scores of samples of predicted cells against samples of observed cells.

    Parameters
    ----------
    population
        The observed cells with their controls, which are held fixed.
    predicted
        (cells, genes) predicted cells.
    predicted_weights, observed_weights
        (samples, cells) how often each cell is drawn.
    centre
        (genes,) mean around which the means of both sides are to scatter.
    average, exclude
        As in :meth:`ObservedPopulation.score`.

    Returns
    -------
    (samples,) scores by metric, for the metrics on means that vary with the cells.
    """
    guess = centre + _deviations(predicted, predicted_weights)
    truth = centre + _deviations(population.observed, observed_weights)
    source, reference = population.control_means
    guess_effect, truth_effect = guess - source, truth - reference
    error, control_error = (guess - truth) ** 2, (source - truth) ** 2
    noise = population.moments.noise.mean()
    # chosen anew in each sample: which genes change most is part of what is uncertain
    genes = np.argpartition(-np.abs(truth_effect), len(population.de_genes) - 1)[:, : len(population.de_genes)]
    top = lambda x: np.take_along_axis(x, genes, axis=1)
    scores = {
        "r2_de": _r2(top(truth), top(error)),
        "pearson_effect": _pearson(guess_effect, truth_effect),
        "mse_ratio": error.mean(axis=1) / control_error.mean(axis=1),
        "r2": _r2(truth, error),
        "pearson_effect_de": _pearson(top(guess_effect), top(truth_effect)),
        "mse": error.mean(axis=1),
        "mae": np.abs(guess - truth).mean(axis=1),
        "cosine_effect": _cosine(guess_effect, truth_effect),
        "mse_unbiased_ratio": _ratio(error.mean(axis=1) - noise, control_error.mean(axis=1) - noise),
    }
    if average is not None:
        scores["pearson_centred"] = _pearson(guess - average, truth - average)
    if exclude is not None:
        others = kept_genes(exclude, source.size)
        scores["pearson_others"] = _pearson(guess_effect[:, others], truth_effect[:, others])
    if np.isfinite(population.weights).all():
        # weights are the absolute t: the effect of the sample over the standard error of the data
        size = np.abs(population.effect)
        inverse_error = np.divide(population.weights, size, out=np.zeros_like(size), where=size > 0)
        weights = np.abs(truth_effect) * inverse_error
        scores["r2_weighted"] = _r2(truth_effect, (guess_effect - truth_effect) ** 2, weights)
    return scores


def kept_genes(exclude, n_genes: int) -> np.ndarray:
    """(genes,) boolean mask of all genes but those at the positions (or in the mask) ``exclude``."""
    exclude = np.asarray(exclude)
    kept = np.ones(n_genes, dtype=bool)
    kept[exclude if exclude.dtype == bool else exclude.astype(int)] = False
    return kept


def centred_interval(metric: str, estimate: float, samples: np.ndarray) -> tuple[float, float]:
    """Central 95 % of the samples, moved so that their median is the estimate, on a scale on which spread is even."""
    forward, back = _scale(metric)
    samples = samples[np.isfinite(samples)]
    if samples.size < 2 or not np.isfinite(estimate):
        return float("nan"), float("nan")
    moved = forward(samples)
    moved = moved + (forward(np.array(estimate)) - np.median(moved))
    low, high = np.sort(back(np.quantile(moved, [0.025, 0.975])))
    return float(low), float(high)


def _scale(metric: str):
    """A scale on which a metric has about the same spread everywhere, and the way back."""
    tiny = np.finfo(float).tiny
    if METRICS[metric].ceiling == "spearman-brown":
        return lambda r: np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), np.tanh
    if metric in ("mse", "mae", "mse_ratio"):
        return lambda error: np.log(np.maximum(error, tiny)), np.exp
    if metric in ("r2", "r2_de", "r2_weighted"):
        return lambda r2: np.log(np.maximum(1 - r2, tiny)), lambda log: 1 - np.exp(log)
    return np.copy, np.copy


def _deviations(cells, weights: np.ndarray) -> np.ndarray:
    """(samples, genes) mean of each sample minus the mean of the cells."""
    cells = as_cells(cells)
    # a sample that misses these cells altogether keeps them as they are
    weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, 1.0)
    weights = weights / weights.sum(axis=1, keepdims=True) - 1 / cells.shape[0]
    return np.asarray((cells.T @ weights.T).T if sp.issparse(cells) else weights @ cells)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.shape[1] == 0:
        return np.full(len(x), np.nan)
    return _cosine(x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True))


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dot = lambda a, b: np.einsum("ij,ij->i", a, b)
    return _ratio(dot(x, y), np.sqrt(dot(x, x) * dot(y, y)))


def _r2(truth: np.ndarray, error: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    weights = np.ones_like(truth) if weights is None else weights
    dot = lambda x: np.einsum("ij,ij->i", x, weights) / weights.sum(axis=1)
    return 1 - _ratio(dot(error), dot(truth**2) - dot(truth) ** 2)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
