"""Names of places in the registry and in the AnnData, in one spot so that no two files disagree."""

from __future__ import annotations

from typing import NamedTuple


class _CausalKeys(NamedTuple):
    """Registry keys that this package adds to :data:`scvi.REGISTRY_KEYS`."""

    PERTURBATION: str = "perturbation"
    """(cells, tokens) dosage matrix; a control cell is a row of zeros."""
    GRN: str = "grn"
    """Prior gene regulatory network; lives in the state registry, has no per-cell data."""
    FEATURES: str = "perturbation_features"
    """Feature vector of each token; lives in the state registry, has no per-cell data."""
    QUALITY: str = "quality"
    """(cells, 1) quality class: 0 passes, 1 .. K are kinds of failure."""
    INDICES: str = "ind_x"
    """Row of each cell in the AnnData, from which partner cells are looked up."""
    GROUP: str = "group"
    """Block of a cell within a grouped batch: 0 .. n_groups - 1."""


CAUSAL_KEYS = _CausalKeys()

CONTROL_PREFIX = "control_"
"""Prefix of the tensors of the control cell that is paired with each cell of a batch."""

SOURCE_PREFIX = "source_"
"""Prefix of the covariates that a source cell has, where a prediction sets others."""

UNS_KEY = "scvi_causal"
"""Where the provenance of predictions is kept in ``adata.uns``."""

NORMALIZED_TOTAL = 1e4
"""Library to which "normalized" expression is scaled (counts per 10,000)."""
