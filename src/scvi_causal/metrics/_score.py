"""The ten numbers of a small table, in one call."""

from __future__ import annotations

import numpy as np

from ._observed import ObservedPopulation
from ._registry import PLAIN

DISTANCES = ("energy", "energy_pca", "mmd2")


def score_counterfactual(
    observed,
    predicted,
    control_source_mean,
    control_reference,
    n_de: int = 50,
    *,
    pca=None,
    distances: bool = True,
    max_cells: int | None = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Score predicted against observed cells of one perturbation in one context.

    For one prediction and ten numbers. Where several models are scored, or all numbers are wanted, make an
    :class:`ObservedPopulation` once.

    Parameters
    ----------
    observed
        (cells, genes) real perturbed cells that no model was trained on, log1p-normalised, dense or sparse.
    predicted
        (cells, genes) predicted cells on the same scale, as draws; or one (genes,) mean profile, for which the numbers
        on distributions are NaN.
    control_source_mean
        Mean (or cells) of the control half that models saw and predicted from.
    control_reference
        Cells (or mean) of the *other* control half: observed effects, and with them the DE genes, are measured against it.
    n_de
        Number of DE genes, see :func:`top_de_genes`.
    pca
        A fitted PCA of training cells (:func:`fit_pca`): adds ``energy_pca``.
    distances
        Whether to compute the distances between populations (quadratic in the cells).
    max_cells
        Cells of each population that enter the distances at most.
    seed
        Of that choice of cells.

    Returns
    -------
    ``n_observed``, ``n_predicted`` and the first ten numbers of :data:`METRICS` (nine without a ``pca``).

    Raises
    ------
    ValueError
        If numbers of genes differ, a population is empty or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import score_counterfactual
    >>> rng = np.random.default_rng(0)
    >>> control_a, control_b = rng.normal(size=(2, 50, 8))
    >>> shift = np.arange(8.0)
    >>> score = score_counterfactual(rng.normal(size=(60, 8)) + shift, control_a + shift, control_a, control_b, n_de=4)
    >>> score["pearson_effect"] > 0.98, score["mse_ratio"] < 0.01
    (True, True)
    """
    options = {"n_de": n_de, "pca": pca, "max_cells": max_cells, "seed": seed}
    population = ObservedPopulation(observed, control_source_mean, control_reference, **options)
    score = population.score(predicted, metrics=[name for name in PLAIN if distances or name not in DISTANCES])
    return {key: score.get(key, np.nan) for key in plain_keys(pca)}


def plain_keys(pca) -> list[str]:
    """Keys of a score of ten numbers, whatever was left out of it."""
    return ["n_observed", "n_predicted", *(name for name in PLAIN if name != "energy_pca" or pca is not None)]
