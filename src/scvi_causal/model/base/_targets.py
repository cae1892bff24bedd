"""What is asked for: from the ``perturbation`` and ``dosage`` arguments of a call to dosages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scvi_causal.data import Vocabulary, canonical_labels
from scvi_causal.data._messages import listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scipy.sparse import csr_matrix

Mode = Literal["own label", "one target", "target per cell", "several targets"]


@dataclass(frozen=True)
class Targets:
    """Targets of the rows of a prediction.

    Parameters
    ----------
    labels
        (n_rows,) canonical label per row.
    dosage
        (n_rows, n_tokens) dosage.
    tokens
        Tokens of the columns, in alphabetical order.
    """

    labels: np.ndarray
    dosage: csr_matrix
    tokens: tuple[str, ...]


def read_mode(perturbation: object) -> Mode:
    """Which question the ``perturbation`` argument asks, told by its type alone."""
    if perturbation is None:
        return "own label"
    if isinstance(perturbation, str):
        return "one target"
    if isinstance(perturbation, list | tuple):
        return "several targets"
    if isinstance(perturbation, np.ndarray | pd.Series | pd.Categorical | pd.Index):
        return "target per cell"
    raise ValueError(
        f"perturbation is a {type(perturbation).__name__}: pass None (the label of each cell), a label such as 'KLF1', an "
        "array or Series with one label per cell, or a list of labels."
    )


def label_per_row(perturbation: object, n_rows: int) -> np.ndarray:
    """One label per row from a label or an array of labels."""
    if isinstance(perturbation, str):
        return np.full(n_rows, perturbation, dtype=object)
    labels = np.asarray(perturbation, dtype=object)
    if labels.shape != (n_rows,):
        raise ValueError(
            f"perturbation has the shape {labels.shape}, and there are {n_rows:,} cells: an array gives one label per cell. "
            "To predict every cell under several targets pass a list."
        )
    return labels


def dosage_per_row(dosage: object, n_rows: int) -> object:
    """A dosage for all rows, or an array with one per row."""
    if dosage is None or isinstance(dosage, str) or np.ndim(dosage) == 0:
        return dosage
    dosages = np.asarray(dosage, dtype=object)
    if dosages.shape != (n_rows,):
        raise ValueError(
            f"dosage has the shape {dosages.shape}, and there are {n_rows:,} cells: pass one for all or one per cell."
        )
    return dosages


def dosage_per_target(dosage: object, targets: list) -> np.ndarray | None:
    """One dosage per target of a list, ``None`` if all are 1."""
    if dosage is None:
        return None
    amounts = np.empty(len(targets), dtype=object)
    if isinstance(dosage, str) or np.ndim(dosage) == 0:
        amounts[:] = [dosage] * len(targets)
        return amounts
    given = list(dosage)
    if len(given) != len(targets):
        raise ValueError(
            f"dosage has {len(given)} values for the {len(targets)} targets {listed(targets)}: pass one per target, or one "
            "for all."
        )
    amounts[:] = [1.0 if amount is None else amount for amount in given]
    return amounts


def encode_targets(
    labels: Sequence[str],
    dosages: Iterable | None,
    extra_labels: Sequence[str],
    extra_dosages: Iterable | None,
    separator: str | None,
    control_categories: tuple[str, ...],
) -> tuple[Targets, Targets]:
    """Targets of the rows, and the conditions they are held against, over one joint set of tokens."""
    distinct = [*pd.unique(np.asarray(labels, dtype=object)), *pd.unique(np.asarray(extra_labels, dtype=object))]
    tokens = Vocabulary.from_labels(distinct, separator, control_categories).tokens
    vocabulary = Vocabulary(tokens, separator, control_categories)

    def encode(names: Sequence[str], amounts: Iterable | None) -> Targets:
        names = np.asarray(names, dtype=object)
        dosage = vocabulary.encode(names, amounts)
        return Targets(canonical_labels(names, separator, control_categories), dosage, tokens)

    return encode(labels, dosages), encode(extra_labels, extra_dosages)


def dosage_text(dosage: csr_matrix, separator: str | None) -> np.ndarray:
    """Dosages as strings in the order of the canonical labels (``"0.5+2"``; ``"0"`` for control)."""
    join = separator or "+"
    rows = np.split(dosage.data, dosage.indptr[1:-1])
    return np.asarray([join.join(f"{value:g}" for value in row) or "0" for row in rows], dtype=object)
