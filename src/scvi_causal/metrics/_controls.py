"""Independent control halves: what models see is never what effects are measured against."""

from __future__ import annotations

import numpy as np


def split_controls(is_control, strata=None, *, n_parts: int = 2, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Split the control cells at random into independent parts, each with its share of every stratum.

    Give the first part to the models (training and source cells) and measure effects against the second. With shared
    controls a prediction is rewarded for knowing the noise of the control mean.

    Parameters
    ----------
    is_control
        (cells,) boolean.
    strata
        (cells,) labels, such as the cell type: each is split on its own. ``None`` for one stratum.
    n_parts
        How many parts.
    seed
        Of a local generator; nothing global is touched.

    Returns
    -------
    ``n_parts`` sorted arrays of cell positions, disjoint, together all controls; sizes differ by at most 1 per stratum.

    Raises
    ------
    ValueError
        If a stratum that has controls has fewer than ``n_parts``.

    Examples
    --------
    >>> import numpy as np
    >>> from scvi_causal.metrics import split_controls
    >>> seen, reference = split_controls(np.array([True, True, False, True, True]))
    >>> len(seen), len(reference), set(seen) & set(reference)
    (2, 2, set())
    """
    is_control = np.asarray(is_control)
    if is_control.dtype != bool or is_control.ndim != 1:
        raise ValueError(
            f"is_control: expected a (cells,) boolean mask, got {is_control.dtype} of shape {is_control.shape}."
        )
    if not is_control.any():
        raise ValueError("There is not a single control cell to split. Check the control label.")
    strata = np.zeros(is_control.size, dtype=int) if strata is None else np.asarray(strata)
    if strata.shape != is_control.shape:
        raise ValueError(f"strata has {strata.size} entries for {is_control.size} cells.")
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(n_parts)]
    too_small = []
    for offset, stratum in enumerate(np.unique(strata[is_control])):
        cells = rng.permutation(np.flatnonzero(is_control & (strata == stratum)))
        if cells.size < n_parts:
            too_small.append(f"{stratum!s} ({cells.size})")
        pieces = np.array_split(cells, n_parts)
        for i, piece in enumerate(pieces):
            # rotated, so that the odd cells of many small strata do not all land in the first part
            parts[(i + offset) % n_parts].append(piece)
    if too_small:
        raise ValueError(
            f"{len(too_small)} strata have fewer than {n_parts} control cells: {', '.join(too_small[:10])}. "
            "Merge them with others or leave them out."
        )
    return tuple(np.sort(np.concatenate(part)) for part in parts)
