"""One observed population, made once, against which all models are scored."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from ._arrays import as_cells, check_same_genes, is_profile, subsample_cells
from ._bootstrap import kept_genes
from ._calibration import coverage_of_cells
from ._de import de_auprc, de_direction, de_overlap, differential_expression
from ._dispersion import compare_covariances, covariance, divide_variances, most_variable_genes
from ._distances import gaussian_kernel, mean_between, mean_within, median_bandwidth, sorted_columns, transport_cost
from ._moments import Moments, cell_moments
from ._profiles import cosine_effect, mae, mse, mse_ratio, pearson_centred, pearson_effect, r2_score_genes, top_de_genes
from ._registry import METRICS
from ._unbiased import mse_ratio_unbiased
from ._weighted import de_weights, r2_weighted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

_N_PAIR_GENES = 100
# up to this many values (64 MB) a sample of cells is made dense once: far faster, and the pairs of cells are as large anyway
_DENSE_VALUES = 2**23


@dataclass(frozen=True, eq=False)
class ObservedPopulation:
    """Observed cells of one (perturbation, context) with their controls: the truth of a table, prepared once for all models.

    What does not depend on a prediction (moments, DE genes and calls, distances among the observed cells, sorted values) is
    computed when it is first needed and kept.

    Parameters
    ----------
    observed
        (cells, genes) real perturbed cells that no model was trained on, log1p-normalised, dense or sparse.
    source
        Cells of the control half that models saw and predicted from, or their :class:`Moments`; with their mean alone there
        are no DE calls of predictions.
    reference
        Cells (or Moments) of the *other* control half: observed effects are measured against it; with their mean alone there
        are no DE calls and no weights of genes.
    n_de
        Number of DE genes, see :func:`top_de_genes`.
    pca
        A fitted PCA of training cells (:func:`fit_pca`) for ``energy_pca``; ``None`` leaves it NaN.
    max_cells
        Cells of each population at most that enter what is quadratic in them or depends on their number: distances,
        Wasserstein, coverage. ``None`` takes all.
    alpha
        False discovery rate of the calls of differential expression.
    seed
        Of the choice of cells.

    Raises
    ------
    ValueError
        If numbers of genes differ, a population is empty or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import ObservedPopulation
    >>> rng = np.random.default_rng(0)
    >>> source, reference, observed = rng.normal(size=(3, 60, 8))
    >>> population = ObservedPopulation(observed + np.arange(8.0), source, reference, n_de=4)
    >>> score = population.score(source + np.arange(8.0))
    >>> score["pearson_effect"] > 0.98, score["de_direction"], score["mse_ratio"] < 0.01
    (True, 1.0, True)
    """

    observed: Any
    source: Any
    reference: Any
    n_de: int = 50
    pca: Any = None
    max_cells: int | None = 500
    alpha: float = 0.05
    seed: int = 0

    def __post_init__(self):
        observed, source, reference = self.moments, self._source, self._reference
        check_same_genes(observed=observed.mean, control_source=source.mean, control_reference=reference.mean)

    # ------------------------------------------------------------------ what is known of the observed cells

    @cached_property
    def moments(self) -> Moments:
        """Mean, variance and number of the observed cells."""
        return cell_moments(self.observed, "observed")

    @cached_property
    def _source(self) -> Moments:
        return cell_moments(self.source, "control_source_mean")

    @cached_property
    def _reference(self) -> Moments:
        return cell_moments(self.reference, "control_reference")

    @property
    def control_means(self) -> tuple[np.ndarray, np.ndarray]:
        """(genes,) means of the control halves: the source, and the reference."""
        return self._source.mean, self._reference.mean

    @cached_property
    def effect(self) -> np.ndarray:
        """(genes,) observed effect: mean of the observed cells minus mean of the reference controls."""
        return self.moments.mean - self._reference.mean

    @cached_property
    def de_genes(self) -> np.ndarray:
        """Positions of the genes with the largest effect, largest first."""
        return top_de_genes(self.moments, self._reference, self.n_de)

    @cached_property
    def de(self) -> pd.DataFrame | None:
        """Calls of differential expression (:func:`differential_expression`); ``None`` where one side is a mean only."""
        if is_profile(self.observed) or is_profile(self.reference):
            return None
        return differential_expression(self.moments, self._reference, alpha=self.alpha)

    @cached_property
    def weights(self) -> np.ndarray:
        """(genes,) weight of each gene in ``r2_weighted`` (:func:`de_weights`); NaN where one side is a mean only."""
        if self.de is None:
            return np.full(self.effect.size, np.nan)
        return de_weights(self.moments, self._reference)

    # ------------------------------------------------------------------ scores

    def score(
        self,
        predicted,
        *,
        average: np.ndarray | None = None,
        exclude: np.ndarray | Sequence[int] | None = None,
        metrics: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Score predicted cells (or one mean profile).

        Parameters
        ----------
        predicted
            (cells, genes) predicted cells on the same scale, as draws, dense or sparse; or one (genes,) mean profile, for
            which the numbers that need cells are NaN.
        average
            (genes,) unweighted mean of the mean profiles of the training perturbations: for ``pearson_centred``, which is NaN
            without it.
        exclude
            Positions (or boolean mask) of the genes that are perturbed themselves, empty if none is measured: for
            ``pearson_others``, which is NaN without it.
        metrics
            Names of :data:`METRICS` to compute; ``None`` takes all that one population has (not ``discrimination``).

        Returns
        -------
        ``n_observed``, ``n_predicted`` and the numbers by name, in the order of :data:`METRICS`. In ``de_overlap`` and
        ``de_auprc`` predicted cells count as at most as many as were observed: calls cannot be bought with more draws.

        Raises
        ------
        ValueError
            If numbers of genes differ, there are no predicted cells, a value is not finite or a metric is unknown.
        """
        wanted = _check_names(metrics)
        guess = cell_moments(predicted, "predicted")
        check_same_genes(observed=self.moments.mean, predicted=guess.mean)
        values = self._score_means(guess.mean, average, exclude)
        if not (is_profile(predicted) or is_profile(self.observed)):
            values |= self._score_calls(guess, wanted)
            values |= self._score_cells(as_cells(predicted, "predicted"), guess, wanted)
        counts = {"n_observed": self.moments.n_cells, "n_predicted": guess.n_cells}
        return counts | {name: values.get(name, np.nan) for name in METRICS if name in wanted}

    def _score_means(self, guess: np.ndarray, average, exclude) -> dict[str, float]:
        truth, source, reference = self.moments.mean, self._source.mean, self._reference.mean
        genes, controls = self.de_genes, (source, reference)
        score = {
            "r2_de": r2_score_genes(truth, guess, genes),
            "pearson_effect": pearson_effect(truth, guess, *controls),
            "mse_ratio": mse_ratio(truth, guess, source),
            "r2": r2_score_genes(truth, guess),
            "pearson_effect_de": pearson_effect(truth, guess, *controls, genes),
            "mse": mse(truth, guess),
            "mae": mae(truth, guess),
            "cosine_effect": cosine_effect(truth, guess, *controls),
            "r2_weighted": r2_weighted(truth, guess, self.weights, *controls),
            # means of predictions are credited no noise: it is theirs, and many draw cells whose mean has none
            "mse_unbiased_ratio": mse_ratio_unbiased(self.moments, guess, source),
        }
        if average is not None:
            score["pearson_centred"] = pearson_centred(truth, guess, average)
        if exclude is not None:
            score["pearson_others"] = pearson_effect(truth, guess, *controls, kept_genes(exclude, truth.size))
        if self.de is not None:
            score["de_direction"] = de_direction(self.de, guess - source)
        return score

    def _score_calls(self, guess: Moments, wanted: set[str]) -> dict[str, float]:
        if self.de is None or is_profile(self.source) or not wanted & {"de_overlap", "de_auprc"}:
            return {}
        as_many = Moments(guess.mean, guess.variance, min(guess.n_cells, self.moments.n_cells))
        calls = differential_expression(as_many, self._source, alpha=self.alpha)
        ranking, _ = de_auprc(self.de, calls["statistic"].abs())
        return {"de_overlap": de_overlap(self.de, calls), "de_auprc": ranking}

    def _score_cells(self, predicted, guess: Moments, wanted: set[str]) -> dict[str, float]:
        ratio = divide_variances(guess.variance, self.moments.variance)
        score = {"variance_ratio": float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else np.nan}
        if "pair_correlation" in wanted:
            genes, observed = self._pairs
            score["pair_correlation"], _ = compare_covariances(observed, covariance(predicted, genes))
        sample = self._draw(predicted)
        if wanted & {"energy", "mmd2"}:
            score |= self._score_distances(_dense(sample))
        if "energy_pca" in wanted and self.pca is not None:
            observed, within = self._sample_pca
            projected = self._project(sample)
            between, own = mean_between(observed, projected, [np.sqrt])[0], mean_within(projected, [np.sqrt])[0]
            score["energy_pca"] = float(2 * between - within - own)
        if "wasserstein" in wanted:
            score["wasserstein"] = self._score_transport(sample)
        if "coverage90" in wanted:
            score["coverage90"] = coverage_of_cells(self._sample, sample, 0.9)
        return score

    def _score_distances(self, sample) -> dict[str, float]:
        """Energy distance and MMD in one pass over the distances."""
        observed, kernel, within = self._sample_distances
        functions = [np.sqrt, kernel]
        between, own = mean_between(observed, sample, functions), mean_within(sample, functions)
        return {
            "energy": float(2 * between[0] - within[0] - own[0]),
            "mmd2": float(within[1] + own[1] - 2 * between[1]),
        }

    def _score_transport(self, sample) -> float:
        start, costs = 0, []
        for block in sorted_columns(sample):
            costs.append(transport_cost(self._sorted[start : start + len(block)], block))
            start += len(block)
        return float(np.concatenate(costs).mean()) if costs else float("nan")

    # ------------------------------------------------------------------ the sample of observed cells

    @cached_property
    def _sample_and_rng(self):
        """Observed cells that enter distances, and the generator that draws those of predictions next."""
        rng = np.random.default_rng(self.seed)
        return subsample_cells(as_cells(self.observed, "observed"), self.max_cells, rng), rng

    @property
    def _sample(self):
        return self._sample_and_rng[0]

    def _draw(self, predicted):
        """The predicted cells that enter distances: the same ones whenever it is asked."""
        return subsample_cells(predicted, self.max_cells, deepcopy(self._sample_and_rng[1]))

    @cached_property
    def _sample_distances(self):
        """Sample, kernel, and mean distance and kernel within the sample."""
        sample = _dense(self._sample)
        kernel = gaussian_kernel(median_bandwidth(sample))
        return sample, kernel, mean_within(sample, [np.sqrt, kernel])

    @cached_property
    def _sample_pca(self):
        projected = self._project(self._sample)
        return projected, mean_within(projected, [np.sqrt])[0]

    def _project(self, sample) -> np.ndarray:
        return self.pca.transform(sample.astype(np.float64, copy=False))

    @cached_property
    def _sorted(self) -> np.ndarray:
        """(genes, cells) of the sample, ascending over cells."""
        return np.concatenate(list(sorted_columns(self._sample)))

    @cached_property
    def _pairs(self):
        """The genes whose pairs are compared, and their covariances."""
        genes = most_variable_genes(self.moments.variance, _N_PAIR_GENES)
        return genes, covariance(as_cells(self.observed), genes)


def _dense(sample):
    """float64, dense unless that would be large."""
    if sample.shape[0] * sample.shape[1] > _DENSE_VALUES:
        return sample
    return np.asarray(sample.toarray() if sp.issparse(sample) else sample, dtype=np.float64)


def _check_names(names: Sequence[str] | None) -> set[str]:
    """The metrics to compute; refuses names that are none."""
    known = {name for name, metric in METRICS.items() if metric.needs != "panel"}
    if names is None:
        return known
    unknown = [name for name in names if name not in known]
    if unknown:
        from scvi_causal.data._messages import listed, suggest  # here, so that metrics can be used without the models

        near = sorted({n for name in unknown for n in suggest(name, known)}) or sorted(known)
        raise ValueError(
            f"{len(unknown)} of {len(names)} metrics are not computed from one population: {listed(unknown)}. "
            f"Known are for example {listed(near)}."
        )
    return set(names)
