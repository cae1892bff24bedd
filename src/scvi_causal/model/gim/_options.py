"""What the options of GIM mean for the data at hand, and which of them make no sense together."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from scvi_causal.data._scan import scan_matrix
from scvi_causal.model.gim._search import SearchOptions
from scvi_causal.nn import ACYCLICITY

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Mechanism = Literal["linear", "mlp"]
InterventionKind = Literal["shift", "hard"]
PriorUse = Literal["auto", "penalty", "mask", "none"]
Combination = Literal["superposition", "features"]
Selection = Literal["bic", "held-out"]
DataType = Literal["auto", "counts", "continuous"]

_FEW = 0.01  # share of the values below which exceptions are taken for mistakes
_MANY_NODES = 60
_PRIOR_DISCOUNT = 0.8


def check_options(**given: str) -> None:
    """Raise ``ValueError`` for a value that is no choice."""
    choices = {
        "mechanism": get_args(Mechanism),
        "intervention": get_args(InterventionKind),
        "grn": get_args(PriorUse),
        "combination": get_args(Combination),
        "selection": get_args(Selection),
        "data_type": get_args(DataType),
        "acyclicity": tuple(ACYCLICITY),
    }
    for name, value in given.items():
        if value not in choices[name]:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices[name]))}.")


def look_at_scale(x, data_type: str, has_library: bool) -> str:
    """``"log1p"`` for counts, ``"continuous"`` for anything else.

    Raises
    ------
    ValueError
        If a few values of what else are counts cannot be counts, or cells without a size factor have none.
    """
    if data_type == "continuous":
        return "continuous"
    scan = scan_matrix(x, counts=True)
    bad = scan.n_negative + scan.n_fractional
    stored = getattr(x, "nnz", None)
    n_values = int(np.prod(x.shape)) if stored is None else int(stored)
    if bad and (data_type == "counts" or bad < _FEW * n_values):
        raise ValueError(
            f"The data look like counts, but {scan.n_negative} values are negative and {scan.n_fractional} are not whole. Repair "
            "or remove these cells or genes, or pass data_type='continuous' if these are no counts."
        )
    if bad:
        logger.info(
            "%d values are negative and %d fractional: these are no counts, so nodes and predictions are on the scale of the data.",
            scan.n_negative,
            scan.n_fractional,
        )
        return "continuous"
    if len(scan.empty_cells) and not has_library:
        raise ValueError(
            f"{len(scan.empty_cells)} cells have no counts, and so no library. Remove them, e.g. with "
            "scanpy.pp.filter_cells(adata, min_counts=1), or name the library of a cut gene panel with size_factor_key."
        )
    return "log1p"


def search_options(
    n_nodes: int,
    hard: bool,
    acyclicity: str,
    edge_penalties: tuple[float, ...] | None,
    dag_weights: tuple[float, ...] | None,
    n_kicks: int | None,
) -> SearchOptions:
    """Settings of the search; a grid where it costs little, one setting where it costs minutes."""
    many = n_nodes > _MANY_NODES or (hard and n_nodes > _MANY_NODES // 3)
    default = SearchOptions()
    return SearchOptions(
        edge_penalties=tuple(edge_penalties or ((0.06,) if many else default.edge_penalties)),
        dag_weights=tuple(dag_weights or ((0.0,) if many else default.dag_weights)),
        acyclicity=acyclicity,
        n_kicks=(0 if many else default.n_kicks) if n_kicks is None else n_kicks,
    )


def prior_matrices(prior: pd.DataFrame, names: np.ndarray, use: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Factor on the penalty of each edge, and the mask of the edges that may be; ``None`` for what is not used.

    Parameters
    ----------
    prior
        Edge list.
    names
        (d,) names of the nodes.
    use
        ``"penalty"``, ``"mask"`` or ``"none"``.
    """
    if use == "none":
        return None, None
    place = {name: i for i, name in enumerate(names)}
    known = prior["source"].isin(place) & prior["target"].isin(place) & (prior["source"] != prior["target"])
    source, target = (prior.loc[known, c].map(place).to_numpy(dtype=np.int64) for c in ("source", "target"))
    if not len(source):
        if use == "mask":
            raise ValueError(
                f"None of the {len(prior):,} edges of the prior network joins two of the {len(names)} nodes, so that grn='mask' leaves "
                "no edge. Use grn='penalty' or 'none', or more nodes (n_nodes=)."
            )
        logger.info("None of the %d edges of the prior network joins two nodes; it is not used.", len(prior))
        return None, None
    mask = np.zeros((len(names), len(names)), dtype=bool)
    mask[source, target] = True
    if use == "mask":
        return None, mask
    strength = np.abs(prior.loc[known, "weight"].to_numpy(dtype=float))
    share = np.zeros(mask.shape)
    np.maximum.at(share, (source, target), strength / max(strength.max(), 1e-12))
    return 1 - _PRIOR_DISCOUNT * share, None
