"""The vocabulary of tokens: labels to a sparse (cells x tokens) dosage matrix and back.

Everything here looks at each *distinct* label once, so that a column of 200,000 cells costs about as much as its handful of
conditions, and stays sparse, so that a screen of 10,000 perturbations costs one number per cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse import csr_matrix

from ._dosages import parse_dosage_pairs, parse_dosages, scalar_dosage
from ._labels import as_control_categories, canonical_labels, check_separator, control_mask, parse_all, parse_label
from ._messages import listed, plural, suggest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Vocabulary", "canonical_labels", "condition_codes", "control_mask", "parse_dosages", "parse_label"]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model knows, and how labels are written with them.

    Parameters
    ----------
    tokens
        Distinct tokens in alphabetical order; the place of a token is its column in the dosage matrix.
    separator
        What joins the tokens of a combination; ``None`` never splits.
    control_categories
        Labels that mean "no perturbation"; the first is used when labels are written.

    Examples
    --------
    >>> from scvi_causal.data import Vocabulary
    >>> vocabulary = Vocabulary.from_labels(["control", "KLF1", "KLF1+BAK1"])
    >>> vocabulary.tokens
    ('BAK1', 'KLF1')
    >>> vocabulary.encode(["KLF1+BAK1", "control"], dosages=["2+0.5", "0"]).toarray()
    array([[0.5, 2. ],
           [0. , 0. ]], dtype=float32)
    """

    tokens: tuple[str, ...]
    separator: str | None = "+"
    control_categories: tuple[str, ...] = ("control",)

    def __post_init__(self) -> None:
        tokens = tuple(str(t) for t in self.tokens)
        if list(tokens) != sorted(set(tokens)):
            raise ValueError(f"The tokens of a vocabulary are distinct and sorted; got {listed(tokens)}.")
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "separator", check_separator(self.separator))
        object.__setattr__(self, "control_categories", as_control_categories(self.control_categories))
        object.__setattr__(self, "_index", {token: i for i, token in enumerate(tokens)})

    @classmethod
    def from_labels(
        cls, labels: Iterable, separator: str | None = "+", control_categories: str | Iterable[str] = ("control",)
    ) -> Vocabulary:
        """Vocabulary of all tokens that occur in the labels."""
        _, _, parsed = parse_all(labels, separator, control_categories, warn=True)
        tokens = sorted({token for p in parsed for token in p.tokens})
        return cls(tuple(tokens), separator, as_control_categories(control_categories))

    @classmethod
    def from_state(cls, state: dict) -> Vocabulary:
        """Vocabulary kept in the state registry of a :class:`~scvi_causal.data.fields.PerturbationField`."""
        return cls(tuple(state["token_names"]), state["separator"], tuple(state["control_categories"]))

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._index

    def index(self, token: str) -> int:
        """Column of a token; raises ``ValueError`` naming look-alikes if it is not known."""
        if token not in self._index:
            raise ValueError(self._unknown_message([token]))
        return self._index[token]

    def parse(self, label: str) -> tuple[str, ...]:
        """Tokens of a label, known or not. See :func:`parse_label`."""
        return parse_label(label, self.separator, self.control_categories)

    def suggest(self, name: str) -> list[str]:
        """Known tokens that look like ``name``, the nearest first."""
        return suggest(name, self.tokens)

    def _unknown_message(self, unknown: Sequence[str]) -> str:
        hints = [f"{name!r}: {listed(near)}" for name in unknown[:8] if (near := self.suggest(name))]
        return (
            f"{plural(len(unknown), 'token')} unknown among the {len(self):,} registered ones: {listed(unknown)}."
            + (f" Look-alikes: {'; '.join(hints)}." if hints else "")
            + f" Known are {listed(self.tokens)}."
        )

    def encode(
        self,
        labels: Iterable,
        dosages: Iterable | float | None = None,
        unknown: Literal["error", "nan"] = "error",
    ) -> csr_matrix:
        """Dosage matrix of labels.

        Parameters
        ----------
        labels
            (n_cells,) perturbation labels.
        dosages
            See :func:`parse_dosages`; 1 by default.
        unknown
            What to do with cells that carry a token outside the vocabulary: ``"error"``, or ``"nan"``, which stores one NaN
            (in column 0) as the whole row, so that nothing can take the cell for a control.

        Returns
        -------
        (n_cells, n_tokens) float32 CSR matrix; the rows of control cells are empty.

        Raises
        ------
        ValueError
            If labels are missing, dosages do not fit, or tokens are unknown and ``unknown="error"``.
        """
        codes, names, parsed = parse_all(labels, self.separator, self.control_categories)
        new = sorted({token for p in parsed for token in p.tokens if token not in self._index})
        if new and unknown == "error":
            raise ValueError(self._unknown_message(new))
        if unknown not in ("error", "nan"):
            raise ValueError(f"unknown={unknown!r} is not one of 'error', 'nan'.")
        rows = [[self._index.get(token, -1) for token in p.tokens] for p in parsed]
        if dosages is None or np.ndim(dosages) == 0:
            value = 1.0 if dosages is None else dosages
            values = [scalar_dosage(p, value, self.separator) for p in parsed]
        else:
            codes, label_of_pair, values = parse_dosage_pairs(codes, names, parsed, dosages, self.separator)
            rows = [rows[label] for label in label_of_pair]
        for k, row in enumerate(rows):
            if -1 in row:
                rows[k], values[k] = [0], (np.nan,)
        return _take_rows(rows, values, codes, len(self))

    def decode(self, dosage: csr_matrix) -> np.ndarray:
        """Canonical labels of the rows of a dosage matrix; the dosages themselves are not written.

        Parameters
        ----------
        dosage
            (n_cells, n_tokens) sparse matrix.

        Returns
        -------
        (n_cells,) array of ``str`` objects.

        Raises
        ------
        ValueError
            If the number of columns is not that of the tokens, or a row is NaN (a cell with unknown tokens).
        """
        if dosage.shape[1] != len(self):
            raise ValueError(f"The matrix has {dosage.shape[1]:,} columns, the vocabulary {len(self):,} tokens.")
        codes, unique = condition_codes(dosage)
        starts, stops = unique.indptr[:-1], unique.indptr[1:]
        is_unknown = np.array(
            [np.isnan(unique.data[a:b]).any() for a, b in zip(starts, stops, strict=True)], dtype=bool
        )
        if is_unknown.any():
            raise ValueError(
                f"There are tokens outside the vocabulary (NaN rows) in {plural(int(is_unknown[codes].sum()), 'cell')}, which have no "
                "label here: take their labels from adata.obs."
            )
        joint, control = self.separator or "+", self.control_categories[0]
        names = [
            joint.join(self.tokens[i] for i in unique.indices[start:stop]) or control
            for start, stop in zip(starts, stops, strict=True)
        ]
        return np.asarray(names, dtype=object)[codes]


def _take_rows(rows: list[list[int]], values: list[tuple[float, ...]], codes: np.ndarray, n_columns: int) -> csr_matrix:
    """CSR matrix whose row ``i`` is the distinct row ``codes[i]``, put together without a dense step."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    distinct = csr_matrix(
        (
            np.array([v for value in values for v in value], dtype=np.float32),
            np.array([i for row in rows for i in row], dtype=np.int32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        ),
        shape=(len(rows), n_columns),
    )
    return distinct[codes]


def condition_codes(dosage: csr_matrix) -> tuple[np.ndarray, csr_matrix]:
    """Code of the condition of each cell: its tokens together with their dosages.

    Conditions are numbered by their number of tokens (control, if there, is 0), then by the columns of the tokens.

    Parameters
    ----------
    dosage
        (n_cells, n_tokens) sparse dosage matrix.

    Returns
    -------
    codes
        (n_cells,) int64 codes ``0 .. n_conditions - 1``.
    unique_rows
        (n_conditions, n_tokens) CSR matrix with ``unique_rows[codes] == dosage``.

    Examples
    --------
    >>> from scvi_causal.data import Vocabulary, condition_codes
    >>> dosage = Vocabulary(("A", "B")).encode(["A+B", "control", "B", "B+A"])
    >>> condition_codes(dosage)[0].tolist()
    [2, 0, 1, 2]
    """
    matrix = csr_matrix(dosage, dtype=np.float32, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    lengths = np.diff(matrix.indptr)
    codes = np.empty(matrix.shape[0], dtype=np.int64)
    first: list[np.ndarray] = []
    n_codes = 0
    for length in np.unique(lengths):
        cells = np.flatnonzero(lengths == length)
        places = matrix.indptr[cells][:, None] + np.arange(length)
        # The bits of the dosages compare exactly, NaN included, and share an integer table with the columns.
        table = np.hstack([matrix.indices[places].astype(np.int32), matrix.data[places].view(np.int32)])
        if length == 0:
            where, inverse = np.zeros(1, dtype=np.int64), np.zeros(len(cells), dtype=np.int64)
        else:
            _, where, inverse = np.unique(table, axis=0, return_index=True, return_inverse=True)
        codes[cells] = n_codes + inverse.reshape(-1)
        first.append(cells[where])
        n_codes += len(where)
    return codes, matrix[np.concatenate(first)] if first else matrix
