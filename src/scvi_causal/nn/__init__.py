"""Building blocks that take and give tensors and know nothing of AnnData."""

from __future__ import annotations

from scvi_causal.nn._acyclicity import (
    ACYCLICITY,
    greedy_dag,
    log_determinant,
    polynomial,
    spectral_radius,
    topological_order,
    trace_exponential,
)
from scvi_causal.nn._edges import Edges, edge_softmax, propagate
from scvi_causal.nn._graph import break_cycles, random_dag_mask
from scvi_causal.nn._grn_encoder import AttentionHead, DotHead, GRNEncoder, factorised_attention
from scvi_causal.nn._interventions import hard_mean, hard_moments, log_marginal, responsibility, shift_moments
from scvi_causal.nn._likelihoods import AbductedCounts, nb_log_likelihood
from scvi_causal.nn._losses import (
    gaussian_mmd,
    grouped_energy_distance,
    kernel_density_loss,
    kl_normal,
    kl_standard_normal,
    matched_log_kernel,
    published_divergence,
)
from scvi_causal.nn._masks import MaskGradient, kl_bernoulli, straight_through_bernoulli
from scvi_causal.nn._refinement import AttentionRefinement, Candidates, LinearRefinement, background
from scvi_causal.nn._sem import DenseSEM, SparseSEM

__all__ = [
    "ACYCLICITY",
    "AbductedCounts",
    "AttentionHead",
    "AttentionRefinement",
    "Candidates",
    "DenseSEM",
    "DotHead",
    "Edges",
    "GRNEncoder",
    "LinearRefinement",
    "MaskGradient",
    "SparseSEM",
    "background",
    "break_cycles",
    "edge_softmax",
    "factorised_attention",
    "gaussian_mmd",
    "greedy_dag",
    "grouped_energy_distance",
    "hard_mean",
    "hard_moments",
    "kernel_density_loss",
    "kl_bernoulli",
    "kl_normal",
    "kl_standard_normal",
    "log_determinant",
    "log_marginal",
    "matched_log_kernel",
    "nb_log_likelihood",
    "polynomial",
    "propagate",
    "published_divergence",
    "random_dag_mask",
    "responsibility",
    "shift_moments",
    "spectral_radius",
    "straight_through_bernoulli",
    "topological_order",
    "trace_exponential",
]
