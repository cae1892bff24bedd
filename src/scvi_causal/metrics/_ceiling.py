"""What a replicate of the experiment would score: the noise ceiling of every number, with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ._arrays import as_cells
from ._bootstrap import bootstrap_scores, centred_interval, shrunk_mean
from ._controls import split_controls
from ._moments import cell_moments
from ._observed import ObservedPopulation
from ._registry import METRICS, PLAIN
from ._score import DISTANCES, plain_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

R2 = ("r2", "r2_de", "r2_weighted")


def noise_ceiling(
    observed,
    control_a,
    control_b,
    seed: int = 0,
    n_de: int = 50,
    *,
    n_splits: int = 5,
    spearman_brown: bool = False,
    n_bootstrap: int = 0,
    metrics: Sequence[str] | Literal["all"] | None = None,
    average: np.ndarray | None = None,
    exclude: np.ndarray | Sequence[int] | None = None,
    pca=None,
    distances: bool = True,
    max_cells: int | None = 2000,
    alpha: float = 0.05,
) -> dict[str, float]:
    r"""Score one half of the real cells as a prediction of the other half: what a replicate experiment would reach.

    Half 1 with ``control_a`` as its controls predicts half 2 with ``control_b`` as reference, so control noise is
    independent here too. Both halves hold half of the cells; a model is measured against all of them. ``spearman_brown=True``
    turns what two halves say into what **a replicate of full size** would score:

    ==============================================  ====================================================
    correlations, cosine                            Spearman-Brown, :math:`2 r / (1 + r)` (not below -1)
    ``mse``                                         halved: it is sampling noise, which falls as 1 / n
    ``mse_ratio``, ``mse_unbiased_ratio``           the error above the line halved, over all cells
    ``r2``, ``r2_de``, ``r2_weighted``              :math:`1 - R^2` as a ratio of that kind
    ``mae``                                         divided by :math:`\sqrt 2`: noise of a mean
    ``wasserstein``                                 the same, as far as ``max_cells`` allows for more
    ``energy``, ``energy_pca``, ``mmd2``            as they are: unbiased, 0 in expectation at any size
    ``de_overlap``, ``de_auprc``, ``de_direction``  as they are: a **lower** bound, full size calls more
    ``variance_ratio``, ``coverage90``              as they are: their best value is known
    ==============================================  ====================================================

    What the corrected value is not: a bound on predictions. A replicate is noisy too. A prediction *without* noise of its own
    correlates with the observation by up to :math:`\sqrt{r}` of a replicate's ``r``, and reaches half of its squared error; a
    model that draws as many cells as were observed cannot exceed it by much. Spearman-Brown takes all noise to fall
    with the perturbed cells; that of the controls does not, so with few controls the corrected value is a little high.

    Parameters
    ----------
    observed
        (cells, genes) real perturbed cells, at least 4.
    control_a, control_b
        Cells, :class:`Moments` or means of the two control halves, as in :class:`ObservedPopulation`.
    seed
        Of the splits and of the bootstrap.
    n_de
        Number of DE genes, chosen on each second half.
    n_splits
        Random splits averaged over.
    spearman_brown
        Correct from half to full number of cells, see above.
    n_bootstrap
        Bootstrap samples of the cells for 95 % intervals, 200 are enough; 0 leaves them out. The copies of a cell stay in its
        half, samples scatter around a mean that was shrunk by its noise (else they would be noisier than the data), and are
        centred on the estimate, on the scale of Fisher's z for correlations and of the logarithm for errors. Controls are held
        fixed, as they are for the scores of models.
    metrics
        Names of :data:`METRICS`, or ``"all"`` for all that one population has. ``None`` takes the ten of
        :func:`score_counterfactual`.
    average, exclude
        For ``pearson_centred`` and ``pearson_others``, as in :meth:`ObservedPopulation.score`.
    pca, max_cells, alpha
        As in :class:`ObservedPopulation`.
    distances
        As in :func:`score_counterfactual`.

    Returns
    -------
    The same keys as the scores of models have, so that it can be the last row of the same table; with ``n_bootstrap`` also
    ``<metric>_low`` and ``<metric>_high`` for every metric on means but ``de_direction``, which counts few genes.

    Raises
    ------
    ValueError
        If there are fewer than 4 observed cells.

    References
    ----------
    Spearman, *Correlation calculated from faulty data*, and Brown, *Some experimental results in the correlation of mental
    abilities*, both Brit. J. Psychology 1910.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import noise_ceiling
    >>> rng = np.random.default_rng(0)
    >>> control_a, control_b = rng.normal(size=(2, 100, 8))
    >>> ceiling = noise_ceiling(
    ...     rng.normal(size=(100, 8)) + np.arange(8.0), control_a, control_b, n_de=4, n_bootstrap=50
    ... )
    >>> 0.9 < ceiling["pearson_effect_low"] < ceiling["pearson_effect"] < ceiling["pearson_effect_high"] < 1
    True
    """
    observed = as_cells(observed, "observed")
    n_cells = observed.shape[0]
    if n_cells < 4:
        raise ValueError(f"A split-half ceiling needs at least 4 observed cells, got {n_cells}.")
    names = _names(metrics, distances)
    controls = cell_moments(control_a, "control_a"), cell_moments(control_b, "control_b")
    # a mean has no moments: handed on as it came, so that nothing is tested against it
    controls = [m.mean if np.ndim(c) == 1 else m for m, c in zip(controls, (control_a, control_b), strict=True)]
    options = {"n_de": n_de, "pca": pca, "max_cells": max_cells, "alpha": alpha}
    scores, samples, denominators = [], [], []
    weights = _bootstrap_weights(n_cells, n_bootstrap, seed)
    centre = shrunk_mean(cell_moments(observed), cell_moments(control_b).mean) if n_bootstrap else None
    for split in np.random.SeedSequence(seed).generate_state(n_splits):
        half1, half2 = split_controls(np.ones(n_cells, dtype=bool), seed=int(split))
        population = ObservedPopulation(observed[half2], *controls, **options, seed=int(split))
        predicted = observed[half1]
        scores.append(population.score(predicted, average=average, exclude=exclude, metrics=names))
        if n_bootstrap:
            halves = weights[:, half1], weights[:, half2]
            samples.append(bootstrap_scores(population, predicted, *halves, centre, average=average, exclude=exclude))
        denominators.append(error_denominators(population))
    keys = plain_keys(pca) if metrics is None else list(scores[0])
    ceiling = {key: _mean([score.get(key, np.nan) for score in scores]) for key in keys}
    intervals = _intervals(ceiling, samples) if n_bootstrap else {}
    if spearman_brown:
        factors = _error_factors(scores, denominators, ObservedPopulation(observed, *controls, **options))
        ceiling = {key: full_size(key, value, factors) for key, value in ceiling.items()}
        intervals = {key: full_size(key.rpartition("_")[0], value, factors) for key, value in intervals.items()}
    return ceiling | intervals


def full_size(metric: str, value: float, factors: Mapping[str, float]) -> float:
    """Score of a replicate of full size from that of a half; ``factors`` by which errors fall, see :func:`noise_ceiling`."""
    if metric in METRICS and METRICS[metric].ceiling == "spearman-brown":
        return -1.0 if value <= -1 / 3 else 2 * value / (1 + value)
    if metric in R2:
        return 1 - (1 - value) * factors[metric]
    return value * factors.get(metric, 1.0)


def error_denominators(population: ObservedPopulation) -> dict[str, float]:
    """What the errors in ratios and in R2 are divided by: it holds noise too, and more of it in a half."""
    truth, (source, _) = population.moments.mean, population.control_means
    weights, effect, from_source = population.weights, population.effect, float(np.mean((truth - source) ** 2))
    return {
        "mse_ratio": from_source,
        "mse_unbiased_ratio": from_source - float(population.moments.noise.mean()),
        "r2": float(truth.var()),
        "r2_de": float(truth[population.de_genes].var()),
        "r2_weighted": float(weights @ (effect - weights @ effect) ** 2),
    }


def _error_factors(
    scores: list[dict[str, float]], denominators: list[dict[str, float]], full: ObservedPopulation
) -> dict[str, float]:
    """Errors of a replicate of full size over those of the halves."""
    n_cells, limit = full.moments.n_cells, full.max_cells or full.moments.n_cells
    wasserstein = np.sqrt(min(n_cells // 2, limit) / min(n_cells, limit))
    factors = {"mse": 0.5, "mae": np.sqrt(0.5), "wasserstein": wasserstein}
    for name, below in error_denominators(full).items():
        errors = np.array([1 - s.get(name, np.nan) if name in R2 else s.get(name, np.nan) for s in scores])
        errors_above = errors * [half[name] for half in denominators]
        total = np.nansum(errors)
        ratio = np.nansum(errors_above) / total / below if total > 0 and below > 0 else 1.0
        factors[name] = 0.5 * ratio
    return factors


def _names(metrics, distances: bool) -> list[str]:
    if metrics is None:
        metrics = PLAIN
    elif isinstance(metrics, str) and metrics == "all":
        metrics = [name for name, metric in METRICS.items() if metric.needs != "panel"]
    return [name for name in metrics if distances or name not in DISTANCES]


def _bootstrap_weights(n_cells: int, n_bootstrap: int, seed: int) -> np.ndarray:
    """(n_bootstrap, cells) how often each cell is drawn."""
    rng = np.random.default_rng([seed, n_cells])
    return rng.multinomial(n_cells, np.full(n_cells, 1 / n_cells), size=n_bootstrap).astype(np.float64)


def _intervals(ceiling: dict[str, float], samples: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """95 % intervals around the estimates from the bootstrap samples of each split."""
    intervals = {}
    for name in ceiling:
        values = [sample[name] for sample in samples if name in sample]
        if values:
            low, high = centred_interval(name, ceiling[name], np.mean(values, axis=0))
            intervals |= {f"{name}_low": low, f"{name}_high": high}
    return intervals


def _mean(values: list[float]) -> float:
    """Over the splits that have the number: in some no gene may be significant."""
    values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")
