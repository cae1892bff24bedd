"""From the scale on which a module predicts to the one the user asked for; plain functions on tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from scvi_causal._constants import NORMALIZED_TOTAL

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_causal.model.base._module import Scale

Output = Literal["normalized", "counts", "log1p", "delta"]


def check_output(output: str, scale: Scale, model_name: str) -> None:
    """Raise ``ValueError`` if ``output`` is no scale at all, or one that a model on continuous data cannot give."""
    if output not in get_args(Output):
        raise ValueError(f"output={output!r} is not one of {', '.join(map(repr, get_args(Output)))}.")
    if scale == "continuous" and output in ("counts", "log1p"):
        raise ValueError(
            f"This {model_name} was trained on continuous data, which have no library: output={output!r} has no meaning. "
            "Use output='normalized' (the scale of the data itself) or 'delta' (a difference on that scale)."
        )


def to_counts(x: Tensor, scale: Scale, library: Tensor) -> Tensor:
    """Expression on ``scale`` as counts on a library.

    Parameters
    ----------
    x
        (..., cells, genes) expression; ``"counts"``, or ``"log1p"`` of counts per 10,000.
    scale
        Scale of ``x``.
    library
        (cells, 1) counts.
    """
    if scale == "counts":
        return x
    return torch.expm1(x).clamp_min_(0.0) * (library / NORMALIZED_TOTAL)


def to_normalized(x: Tensor, scale: Scale, library: Tensor) -> Tensor:
    """Expression on ``scale`` as counts per 10,000 of the library; continuous data stay as they are."""
    if scale == "counts":
        return x * (NORMALIZED_TOTAL / library)
    return torch.expm1(x).clamp_min_(0.0) if scale == "log1p" else x


def to_log1p(x: Tensor, scale: Scale, library: Tensor) -> Tensor:
    """Expression on ``scale`` as log(1 + counts per 10,000); continuous data stay as they are.

    A model on the log scale may give values a little below zero (a Gaussian has no floor): they are left, because cutting
    them off would raise every mean.
    """
    return torch.log1p(to_normalized(x, scale, library)) if scale == "counts" else x


def round_stochastically(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Whole numbers whose expectation is ``x``: ``floor(x + u)`` with ``u`` uniform on [0, 1)."""
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    floor = torch.floor(x)
    return floor + (noise < x - floor).to(x.dtype)


def convert(
    x: Tensor,
    scale: Scale,
    output: Output,
    library: Tensor,
    *,
    reference: Tensor | None = None,
    whole: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Expression as the user asked for it.

    Parameters
    ----------
    x
        (cells, genes) expression under the target on ``scale``.
    scale
        Scale of the module.
    output
        ``"counts"``, ``"normalized"``, ``"log1p"`` or ``"delta"``.
    library
        (cells, 1) library of the source cells.
    reference
        The same cells under their own condition, on ``scale``; needed for ``"delta"``.
    whole
        Whether counts have to be whole numbers (draws of cells).
    generator
        Source of the randomness of rounding.

    Returns
    -------
    (cells, genes)
    """
    if output == "delta":
        return to_log1p(x, scale, library) - to_log1p(reference, scale, library)
    if output == "log1p":
        return to_log1p(x, scale, library)
    if output == "normalized":
        return to_normalized(x, scale, library)
    counts = to_counts(x, scale, library)
    return round_stochastically(counts, generator) if whole else counts
