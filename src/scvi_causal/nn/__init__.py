"""Building blocks that take and give tensors and know nothing of AnnData."""

from __future__ import annotations

from scvi_causal.nn._graph import break_cycles, random_dag_mask
from scvi_causal.nn._likelihoods import AbductedCounts, nb_log_likelihood
from scvi_causal.nn._losses import gaussian_mmd, kl_standard_normal
from scvi_causal.nn._sem import DenseSEM, SparseSEM

__all__ = [
    "AbductedCounts",
    "DenseSEM",
    "SparseSEM",
    "break_cycles",
    "gaussian_mmd",
    "kl_standard_normal",
    "nb_log_likelihood",
    "random_dag_mask",
]
