"""Counts or continuous: a look at the matrix, and what the answer means for the likelihood."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np
from scvi import REGISTRY_KEYS

from scvi_causal.data._scan import scan_matrix

if TYPE_CHECKING:
    from scvi_causal.model.base._model import CausalModel

logger = logging.getLogger(__name__)

GeneLikelihood = Literal["auto", "nb", "normal"]
DataType = Literal["auto", "counts", "continuous"]

_FEW = 0.01  # share of the values below which exceptions are taken for mistakes


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` if ``value`` is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}.")


def look_at_data(x, has_library: bool, model_name: str) -> str:
    """``"counts"`` or ``"continuous"``, whichever a matrix holds.

    Parameters
    ----------
    x
        (cells, genes) dense, sparse or backed.
    has_library
        Whether a size factor is registered, so that a cell of a cut panel may be empty.
    model_name
        For the messages.

    Raises
    ------
    ValueError
        If a few values of what else are counts cannot be counts, or cells without a size factor have none.
    """
    scan = scan_matrix(x, counts=True)
    bad = scan.n_negative + scan.n_fractional
    if bad and bad < _FEW * _n_values(x):
        raise ValueError(
            f"The data look like counts, but {scan.n_negative} values are negative and {scan.n_fractional} are not whole. Repair "
            "or remove these cells or genes, or pass data_type='continuous' if these are no counts."
        )
    if bad:
        logger.warning(
            "The data are no counts (%d negative, %d fractional values): %s takes them as continuous, with a Gaussian "
            "likelihood and without a library. Register the layer with the raw counts (layer=) for the count model.",
            scan.n_negative,
            scan.n_fractional,
            model_name,
        )
        return "continuous"
    if len(scan.empty_cells) and not has_library:
        raise ValueError(
            f"{len(scan.empty_cells)} cells have no counts, and so no library. Remove them, e.g. with "
            "scanpy.pp.filter_cells(adata, min_counts=1), or name the library of a cut gene panel with size_factor_key."
        )
    return "counts"


def _n_values(x) -> int:
    """Number of values that are not zero, or an upper bound where counting would read a file again."""
    n = getattr(x, "nnz", None)
    if n is None:
        n = np.count_nonzero(x) if isinstance(x, np.ndarray) else int(np.prod(x.shape))
    return int(n)


def resolve_data_type(model: CausalModel, data_type: str) -> str:
    """``"counts"`` or ``"continuous"``: as asked, or as the registered data are."""
    if data_type != "auto":
        return data_type
    if model.adata is None:
        raise ValueError(
            "Without an AnnData the type of the data cannot be looked at: pass data_type='counts' or 'continuous'."
        )
    return look_at_data(
        model.adata_manager.get_from_registry(REGISTRY_KEYS.X_KEY),
        has_library=model._setup_arg("size_factor_key") is not None,
        model_name=type(model).__name__,
    )
