"""All numbers of one (perturbation, context), and the noise ceiling on the same numbers."""

from __future__ import annotations

import numpy as np

from ._arrays import as_cells, check_same_genes, is_profile, mean_profile
from ._controls import split_controls
from ._dispersion import variance_ratio
from ._distances import energy_distance, mmd_squared
from ._profiles import mse, mse_ratio, pearson_effect, r2_score_genes, top_de_genes


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
    ``n_observed``, ``n_predicted`` and the numbers described in :data:`METRICS`.

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
    check_same_genes(
        observed=observed, predicted=predicted, control_source=control_source_mean, control_reference=control_reference
    )
    truth, guess = mean_profile(observed, "observed"), mean_profile(predicted, "predicted")
    source = mean_profile(control_source_mean, "control_source_mean")
    reference = mean_profile(control_reference, "control_reference")
    genes = top_de_genes(truth, reference, n_de)
    score = {
        "n_observed": 1 if is_profile(observed) else observed.shape[0],
        "n_predicted": 1 if is_profile(predicted) else predicted.shape[0],
        "r2_de": r2_score_genes(truth, guess, genes),
        "pearson_effect": pearson_effect(truth, guess, source, reference),
        "mse_ratio": mse_ratio(truth, guess, source),
        "energy": np.nan,
        "variance_ratio": np.nan,
        "r2": r2_score_genes(truth, guess),
        "pearson_effect_de": pearson_effect(truth, guess, source, reference, genes),
        "mse": mse(truth, guess),
    }
    if pca is not None:
        score["energy_pca"] = np.nan
    score["mmd2"] = np.nan
    if not (is_profile(observed) or is_profile(predicted)):
        score.update(_score_populations(as_cells(observed), as_cells(predicted), pca, distances, max_cells, seed))
    return score


def _score_populations(observed, predicted, pca, distances, max_cells, seed) -> dict[str, float]:
    ratio = variance_ratio(observed, predicted)
    score = {"variance_ratio": float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else np.nan}
    if distances:
        limits = {"max_cells": max_cells, "seed": seed}
        score["energy"] = energy_distance(observed, predicted, **limits)
        score["mmd2"] = mmd_squared(observed, predicted, **limits)
        if pca is not None:
            score["energy_pca"] = energy_distance(pca.transform(observed), pca.transform(predicted), **limits)
    return score


def noise_ceiling(
    observed,
    control_a,
    control_b,
    seed: int = 0,
    n_de: int = 50,
    *,
    n_splits: int = 5,
    spearman_brown: bool = False,
    pca=None,
    distances: bool = True,
    max_cells: int | None = 2000,
) -> dict[str, float]:
    """Score one half of the real cells as a prediction of the other half: what a replicate experiment would reach.

    Half 1 with ``control_a`` as its controls predicts half 2 with ``control_b`` as reference, so control noise is
    independent here too. Both halves hold half of the cells. A prediction without sampling noise of its own can therefore
    come out above it, most easily on the MSE; a model with draws cannot by much.

    Parameters
    ----------
    observed
        (cells, genes) real perturbed cells, at least 4.
    control_a, control_b
        Cells or means of the two control halves, as in :func:`score_counterfactual`.
    seed
        Of the splits.
    n_de
        Number of DE genes, chosen on each second half.
    n_splits
        Random splits averaged over.
    spearman_brown
        Correct the correlations from half to full number of cells, ``2 r / (1 + r)``.
    pca, distances, max_cells
        As in :func:`score_counterfactual`.

    Returns
    -------
    The same keys as :func:`score_counterfactual`, so that it can be the last row of the same table.

    Raises
    ------
    ValueError
        If there are fewer than 4 observed cells.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import noise_ceiling
    >>> rng = np.random.default_rng(0)
    >>> control_a, control_b = rng.normal(size=(2, 100, 8))
    >>> ceiling = noise_ceiling(rng.normal(size=(100, 8)) + np.arange(8.0), control_a, control_b, n_de=4)
    >>> 0.98 < ceiling["pearson_effect"] < 1
    True
    """
    observed = as_cells(observed, "observed")
    n_cells = observed.shape[0]
    if n_cells < 4:
        raise ValueError(f"A split-half ceiling needs at least 4 observed cells, got {n_cells}.")
    source, reference = mean_profile(control_a, "control_a"), mean_profile(control_b, "control_b")
    scores = []
    for split in np.random.SeedSequence(seed).generate_state(n_splits):
        half1, half2 = split_controls(np.ones(n_cells, dtype=bool), seed=int(split))
        options = {"pca": pca, "distances": distances, "max_cells": max_cells, "seed": int(split)}
        scores.append(score_counterfactual(observed[half2], observed[half1], source, reference, n_de, **options))
    ceiling = {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
    if spearman_brown:
        for key in ("pearson_effect", "pearson_effect_de"):
            ceiling[key] = 2 * ceiling[key] / (1 + ceiling[key])
    return ceiling
