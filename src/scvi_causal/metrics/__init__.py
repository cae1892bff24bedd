"""Metrics on populations of cells and on effects. They know nothing of models: arrays in, numbers out."""

from ._arrays import gene_variance, log1p_normalize, mean_profile
from ._controls import split_controls
from ._directions import direction_agreement
from ._dispersion import variance_ratio
from ._distances import energy_distance, fit_pca, median_bandwidth, mmd_squared
from ._observed import ObservedPopulation
from ._profiles import mse, mse_ratio, pearson_effect, r2_score_genes, top_de_genes
from ._registry import METRICS, Metric
from ._score import noise_ceiling, score_counterfactual

__all__ = [
    "METRICS",
    "Metric",
    "ObservedPopulation",
    "direction_agreement",
    "energy_distance",
    "fit_pca",
    "gene_variance",
    "log1p_normalize",
    "mean_profile",
    "median_bandwidth",
    "mmd_squared",
    "mse",
    "mse_ratio",
    "noise_ceiling",
    "pearson_effect",
    "r2_score_genes",
    "score_counterfactual",
    "split_controls",
    "top_de_genes",
    "variance_ratio",
]
