"""From AnnData to tensors: labels, graphs, features, checks."""

from __future__ import annotations

from . import fields
from ._grn import grn_from_adjacency, grn_from_edges, restrict_grn, to_edge_index, validate_grn
from ._harmonize import harmonize
from ._perturbations import (
    Vocabulary,
    canonical_labels,
    condition_codes,
    control_mask,
    parse_dosages,
    parse_label,
)
from ._quality import annotate_quality, describe_quality
from ._simulate import (
    DrugSimulation,
    MechanismSimulation,
    Simulation,
    corrupt_grn,
    degree_matched_random_grn,
    grn_overlap,
    random_grn,
    simulate_drugs,
    simulate_mechanisms,
    simulate_screen,
    topological_order,
)
from ._splits import assign_split, describe_split
from ._validate import validate_query, validate_setup

__all__ = [
    "DrugSimulation",
    "MechanismSimulation",
    "Simulation",
    "Vocabulary",
    "annotate_quality",
    "assign_split",
    "canonical_labels",
    "condition_codes",
    "control_mask",
    "corrupt_grn",
    "degree_matched_random_grn",
    "describe_quality",
    "describe_split",
    "fields",
    "grn_from_adjacency",
    "grn_from_edges",
    "grn_overlap",
    "harmonize",
    "parse_dosages",
    "parse_label",
    "random_grn",
    "restrict_grn",
    "simulate_drugs",
    "simulate_mechanisms",
    "simulate_screen",
    "to_edge_index",
    "topological_order",
    "validate_grn",
    "validate_query",
    "validate_setup",
]
