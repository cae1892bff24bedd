"""Batches: grouped by condition, paired with controls, read sparsely."""

from scvi_causal.dataloaders._dataset import CausalDataLoader, CausalDataset, SparseRows
from scvi_causal.dataloaders._pairing import ControlPairing, get_control_mask, get_strata, stratum_label
from scvi_causal.dataloaders._sampler import BatchIndices, EpochBatchSampler, GroupedBatchSampler
from scvi_causal.dataloaders._splitter import CausalDataSplitter

__all__ = [
    "BatchIndices",
    "CausalDataLoader",
    "CausalDataSplitter",
    "CausalDataset",
    "ControlPairing",
    "EpochBatchSampler",
    "GroupedBatchSampler",
    "SparseRows",
    "get_control_mask",
    "get_strata",
    "stratum_label",
]
