"""From AnnData to tensors: labels, graphs, features, checks."""

from __future__ import annotations

from . import fields
from ._grn import grn_from_adjacency, grn_from_edges, restrict_grn, to_edge_index, validate_grn
from ._perturbations import (
    Vocabulary,
    canonical_labels,
    condition_codes,
    control_mask,
    parse_dosages,
    parse_label,
)
from ._validate import validate_setup

__all__ = [
    "Vocabulary",
    "canonical_labels",
    "condition_codes",
    "control_mask",
    "fields",
    "grn_from_adjacency",
    "grn_from_edges",
    "parse_dosages",
    "parse_label",
    "restrict_grn",
    "to_edge_index",
    "validate_grn",
    "validate_setup",
]
