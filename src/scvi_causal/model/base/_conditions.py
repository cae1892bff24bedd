"""Conditions, a label with its dosages, as keys that observed cells and targets can be compared by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.sparse import vstack

from scvi_causal.data import canonical_labels, condition_codes

from ._targets import dosage_per_target, dosage_text, encode_targets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from scipy.sparse import csr_matrix

    from ._model import CausalModel

KEY_SEPARATOR = "\t"
"""Between label and dosage, where a dosage is not 1."""


@dataclass(frozen=True)
class Conditions:
    """What was asked for.

    Parameters
    ----------
    keys
        Keys of the conditions, those of the targets first.
    labels
        Their canonical labels.
    dosage
        (n, n_tokens) dosages.
    tokens
        Tokens of the columns.
    contrast
        Key of the contrast, ``None`` without one.
    n_targets
        How many of the conditions are targets.
    """

    keys: list[str]
    labels: np.ndarray
    dosage: csr_matrix
    tokens: tuple[str, ...]
    contrast: str | None
    n_targets: int

    @property
    def targets(self) -> list[str]:
        """Keys of the targets."""
        return self.keys[: self.n_targets]

    def row(self, key: str) -> csr_matrix:
        """(1, n_tokens) dosages of a condition."""
        return self.dosage[self.keys.index(key)]

    def name(self, table: pd.DataFrame, with_dosage: bool) -> pd.DataFrame:
        """A table with keys as labels and, if wanted or needed, a column of dosages."""
        keys = table["perturbation"]
        label = dict(zip(self.keys, self.labels, strict=True))
        table["perturbation"] = keys.map(label)
        table["contrast"] = table["contrast"].map(label) if self.contrast is not None else None
        if with_dosage or any(KEY_SEPARATOR in key for key in self.targets):
            text = dict(zip(self.keys, dosage_text(self.dosage, None), strict=True))
            table.insert(1, "dosage", keys.map(text))
        return table


def condition_keys(labels: np.ndarray, dosage: csr_matrix) -> np.ndarray:
    """(n,) the label where all dosages are 1, else label and dosages."""
    codes, unique = condition_codes(dosage)
    plain = np.array([bool((row.data == 1).all()) for row in unique])
    text = dosage_text(unique, None)
    keys = np.asarray(labels, dtype=object).copy()
    marked = np.flatnonzero(~plain[codes])
    keys[marked] = keys[marked] + KEY_SEPARATOR + text[codes[marked]]
    return keys


def conditions_of_cells(model: CausalModel, adata: AnnData) -> np.ndarray:
    """(n_obs,) key of what each cell received; cells with unknown tokens keep their label."""
    vocabulary = model._get_vocabulary()
    labels, _ = model._own_conditions(adata, np.arange(adata.n_obs))
    labels = canonical_labels(labels, vocabulary.separator, vocabulary.control_categories)
    dosage = model._dosage(adata)
    nothing = np.diff(dosage.indptr) == 0  # a token at dosage 0 is control, whatever its label
    return condition_keys(np.where(nothing, vocabulary.control_categories[0], labels), dosage)


def conditions_asked(
    model: CausalModel,
    perturbations: str | Sequence[str] | None,
    dosage: float | str | Sequence | None,
    contrast: str | None,
    present: np.ndarray,
) -> Conditions:
    """Targets and contrast; by default everything seen in training, at the dosages that the cells at hand have."""
    vocabulary = model._get_vocabulary()
    separator, controls = vocabulary.separator, vocabulary.control_categories
    labels = model._effect_labels(perturbations)
    if perturbations is None and dosage is None:
        observed: dict[str, list[str]] = {}
        for key in np.unique(present.astype(str)):
            label, _, text = key.partition(KEY_SEPARATOR)
            observed.setdefault(label, []).append(text or "1")
        pairs = [(label, text) for label in labels for text in observed.get(label, ["1"])]
        labels = [label for label, _ in pairs]
        dosages = _as_objects([text if separator and separator in text else float(text) for _, text in pairs])
    else:
        dosages = dosage_per_target(dosage, labels)
    against = [] if contrast is None else [controls[0] if contrast == "control" else contrast]
    targets, reference = encode_targets(labels, dosages, against, None, separator, controls)
    keys = list(condition_keys(targets.labels, targets.dosage))
    first = pd.Index(keys).duplicated(keep="first")
    keep = np.flatnonzero(~first)
    keys = [keys[i] for i in keep]
    names, matrix = targets.labels[keep], targets.dosage[keep]
    found = None
    if against:
        found = condition_keys(reference.labels, reference.dosage)[0]
        if found not in keys:
            keys, names = [*keys, found], np.concatenate([names, reference.labels])
            matrix = vstack([matrix, reference.dosage]).tocsr()
    return Conditions(keys, names, matrix, targets.tokens, found, len(keep))


def _as_objects(values: list) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
