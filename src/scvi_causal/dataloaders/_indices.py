"""Which cells train, validate and test a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scvi_causal.data._messages import did_you_mean, listed, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

_SPLIT_NAMES = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}
_TOLERANCE = 1e-9


class SplitIndices(NamedTuple):
    """Rows of the training, validation and test cells."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def split_from_key(obs: pd.DataFrame, split_key: str) -> SplitIndices:
    """Read the split from a column of `obs` that holds train, valid (validation, val) or test.

    Raises
    ------
    ValueError
        If the column is missing, holds anything else, or no training cell.
    """
    if split_key not in obs:
        raise ValueError(
            f"`split_key` {split_key!r} is not a column of adata.obs; it has {listed(obs.columns, 20)}."
            f"{did_you_mean(split_key, obs.columns)}"
        )
    values = obs[split_key].astype(object).to_numpy()
    names = np.array([_SPLIT_NAMES.get(str(value).strip().lower(), "") for value in values])
    if not (names != "").all():
        bad, counts = np.unique([str(value) for value in values[names == ""]], return_counts=True)
        bad = bad.tolist()
        found = ", ".join(
            f"{value!r} ({plural(int(n), 'cell')})" for value, n in list(zip(bad, counts, strict=True))[:8]
        )
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        raise ValueError(
            f"adata.obs[{split_key!r}] holds {found}{more}; expected 'train', 'valid' (or 'validation', 'val') or 'test' "
            f"for every cell.{did_you_mean(bad[0], _SPLIT_NAMES)} Rename the values, or make the column with "
            "`scvi_causal.data.assign_split`."
        )
    if not (names == "train").any():
        raise ValueError(f"adata.obs[{split_key!r}] marks none of the {plural(len(names), 'cell')} as 'train'.")
    return SplitIndices(*(np.flatnonzero(names == name) for name in ("train", "valid", "test")))


def split_from_indices(indices: Sequence, n_obs: int) -> SplitIndices:
    """Check up to three arrays of rows (or boolean masks); cells in none of them are not used.

    Raises
    ------
    ValueError
        If they overlap, repeat a cell, point outside of the data, or name no training cell.
    """
    if not isinstance(indices, list | tuple) or not 1 <= len(indices) <= 3:
        raise ValueError(
            "`external_indexing` has to be a list of up to three arrays: training, validation, test cells."
        )
    arrays = []
    for given in (*indices, None, None)[:3]:
        array = np.asarray([] if given is None else given)
        if array.dtype == bool and len(array) != n_obs:
            raise ValueError(f"A mask in `external_indexing` has {len(array)} values for {plural(n_obs, 'cell')}.")
        array = np.flatnonzero(array) if array.dtype == bool else array.astype(np.int64)
        if len(outside := array[(array < 0) | (array >= n_obs)]):
            raise ValueError(
                f"`external_indexing` names {plural(len(outside), 'row')} outside of 0 .. {n_obs - 1}: {listed(outside)}."
            )
        arrays.append(array)
    rows, counts = np.unique(np.concatenate(arrays), return_counts=True)
    if len(repeated := rows[counts > 1]):
        raise ValueError(
            f"`external_indexing` names {plural(len(repeated), 'cell')} more than once, within one of its arrays or in two "
            f"of them: rows {listed(repeated)}."
        )
    if len(arrays[0]) == 0:
        raise ValueError("`external_indexing` names no training cell.")
    return SplitIndices(*arrays)


def split_stratified(
    codes: np.ndarray,
    train_size: float | None,
    validation_size: float | None,
    shuffle: bool,
    rng: np.random.Generator,
) -> SplitIndices:
    """Split so that every condition has its share in each part, and at least one training cell.

    Parameters
    ----------
    codes
        Condition of each cell; shape `(n_cells,)`.
    train_size
        Share of training cells; 0.9, or what `validation_size` leaves, by default.
    validation_size
        Share of validation cells; all that is not training by default. The rest are test cells.
    shuffle
        Draw the cells; otherwise the first of each condition validate, the next train and the last test.
    rng
        Source of randomness.

    Raises
    ------
    ValueError
        If the shares are no shares.
    """
    if train_size is None:
        train_size = 0.9 if validation_size is None else min(0.9, 1 - validation_size)
    left = 1 - train_size
    validation_size = left if validation_size is None else validation_size
    if not 0 < train_size <= 1 or not 0 <= validation_size < 1 or validation_size > left + _TOLERANCE:
        raise ValueError(
            "Expected 0 < train_size <= 1, 0 <= validation_size < 1 and a sum of at most 1, got "
            f"train_size={train_size}, validation_size={validation_size}."
        )
    n_cells = len(codes)
    _, codes, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    tie = rng.random(n_cells) if shuffle else np.arange(n_cells)
    order = np.lexsort((tie, codes))
    rank = np.arange(n_cells) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Systematic sampling: each condition is spread evenly over (0, 1), from a start of its own so that conditions
    # of a few cells are rounded up as often as down.
    offset = rng.random(len(sizes)) if shuffle else np.full(len(sizes), 0.5)
    place = (rank + offset[codes[order]]) / sizes[codes[order]]
    n_valid, n_test = (int(n_cells * share + _TOLERANCE) for share in (validation_size, left - validation_size))
    # One cell of each condition is kept for training: a condition that only validates cannot be learned.
    kept = rank == (sizes // 2)[codes[order]]
    free = np.flatnonzero(~kept)
    free = order[free[np.argsort(place[free], kind="stable")]]
    n_valid = min(n_valid, len(free))
    n_test = min(n_test, len(free) - n_valid)
    held = np.zeros(n_cells, dtype=np.int8)
    held[free[:n_valid]] = 1
    held[free[len(free) - n_test :]] = 2
    return SplitIndices(*(np.flatnonzero(held == part) for part in range(3)))
