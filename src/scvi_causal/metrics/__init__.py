"""Metrics on populations of cells and on effects. They know nothing of models: arrays in, numbers out."""

from ._arrays import log1p_normalize, mean_profile
from ._calibration import coverage_of_cells, interval_coverage, pit_values
from ._ceiling import noise_ceiling
from ._cell_eval import cell_eval
from ._controls import split_controls
from ._de import de_auprc, de_direction, de_overlap, de_overlap_at_k, differential_expression
from ._directions import direction_agreement
from ._discrimination import discrimination
from ._dispersion import gene_variance, pair_dispersion, variance_ratio
from ._distances import energy_distance, fit_pca, median_bandwidth, mmd_squared, wasserstein_genes
from ._effect_test import effect_test
from ._grn import grn_auprc, grn_false_omission_rate, grn_wasserstein, score_grn
from ._grn_compare import compare_grn
from ._grn_pairs import pair_effects, rank_by_effect
from ._moments import Moments, cell_moments
from ._observed import ObservedPopulation
from ._profiles import cosine_effect, mae, mse, mse_ratio, pearson_centred, pearson_effect, r2_score_genes, top_de_genes
from ._registry import METRICS, Metric
from ._score import score_counterfactual
from ._unbiased import mse_ratio_unbiased, mse_unbiased
from ._weighted import de_weights, mse_weighted, r2_weighted

__all__ = [
    "METRICS",
    "Metric",
    "Moments",
    "ObservedPopulation",
    "cell_eval",
    "cell_moments",
    "compare_grn",
    "cosine_effect",
    "coverage_of_cells",
    "de_auprc",
    "de_direction",
    "de_overlap",
    "de_overlap_at_k",
    "de_weights",
    "differential_expression",
    "direction_agreement",
    "discrimination",
    "effect_test",
    "energy_distance",
    "fit_pca",
    "gene_variance",
    "grn_auprc",
    "grn_false_omission_rate",
    "grn_wasserstein",
    "interval_coverage",
    "log1p_normalize",
    "mae",
    "mean_profile",
    "median_bandwidth",
    "mmd_squared",
    "mse",
    "mse_ratio",
    "mse_ratio_unbiased",
    "mse_unbiased",
    "mse_weighted",
    "noise_ceiling",
    "pair_dispersion",
    "pair_effects",
    "pearson_centred",
    "pearson_effect",
    "pit_values",
    "r2_score_genes",
    "r2_weighted",
    "rank_by_effect",
    "score_counterfactual",
    "score_grn",
    "split_controls",
    "top_de_genes",
    "variance_ratio",
    "wasserstein_genes",
]
