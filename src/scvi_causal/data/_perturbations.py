"""Perturbation labels: strings such as ``"KLF1+BAK1"`` to a sparse (cells x tokens) dosage matrix and back.

Everything here looks at each *distinct* label once, so that a column of 200,000 cells costs about as much as its handful of
conditions, and stays sparse, so that a screen of 10,000 perturbations costs one number per cell.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scvi import settings

from ._messages import listed, plural, suggest

_MISSING = frozenset({"", "nan", "none", "<na>", "null"})
_UNASSIGNED = frozenset({"unassigned", "unknown", "ambiguous", "undetermined", "multiplet", "doublet"})
# GEARS writes a single perturbation as "A+ctrl"; next to a named token these can mean nothing else.
_FILLERS = frozenset({"ctrl", "control"})
_CONTROL_LOOKALIKES = frozenset(
    "control controls ctrl ctl con neg negative negativecontrol negcontrol negctrl nt ntc nontargeting nontarget "
    "nontargetingcontrol nontargetcontrol safetargeting safeharbor scramble scrambled scr unperturbed untreated vehicle "
    "dmso pbs mock wt wildtype aavs1 intergenic empty emptyvector none baseline unstimulated unstim rest resting".split()
)


class ParsedLabel(NamedTuple):
    """A label taken apart; ``positions[i]`` are the places in the label at which ``tokens[i]`` was written."""

    tokens: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    n_parts: int


def looks_like_control(label: str) -> bool:
    """Whether a label is one of the usual names of control cells (``"ctrl"``, ``"non-targeting"``, ``"DMSO"``, ...).

    Only ever used for hints in messages: no cell is made a control because of its looks.
    """
    return re.sub(r"[\W_]+|\d+$", "", str(label).lower()) in _CONTROL_LOOKALIKES


def as_control_categories(control_category: str | Iterable[str]) -> tuple[str, ...]:
    """One or several control labels as a tuple of distinct strings, in the order given; the first is the canonical one."""
    given = [control_category] if isinstance(control_category, str) or not np.iterable(control_category) else control_category
    names = tuple(dict.fromkeys(str(c).strip() for c in given))
    if not names or "" in names:
        raise ValueError(
            f"control_category={control_category!r} names no control label. "
            "Pass the label of the unperturbed cells, e.g. 'control', or a list of such labels."
        )
    return names


def check_separator(separator: str | None) -> str | None:
    """Return the separator; raise ``ValueError`` when it cannot separate anything."""
    if separator is not None and (not isinstance(separator, str) or not separator.strip()):
        raise ValueError(
            f"separator={separator!r} cannot separate the tokens of a combination: "
            "pass a string that is not blank, e.g. '+', or None to never split a label."
        )
    return separator


def _parse(label: str, separator: str | None, controls: Sequence[str]) -> ParsedLabel:
    label = label.strip()
    if label in controls:
        return ParsedLabel((), (), 1)
    parts = [label] if separator is None else [part.strip() for part in label.split(separator)]
    kept = [(i, part) for i, part in enumerate(parts) if part not in controls]
    named = [(i, part) for i, part in kept if part.lower() not in _FILLERS]
    if named or len(kept) < len(parts):
        kept = named
    places: dict[str, list[int]] = {}
    for i, part in kept:
        places.setdefault(part, []).append(i)
    tokens = tuple(sorted(places))
    return ParsedLabel(tokens, tuple(tuple(places[token]) for token in tokens), len(parts))


def _is_missing(parsed: ParsedLabel) -> bool:
    return any(token.lower() in _MISSING for token in parsed.tokens)


def factorize_labels(labels: Iterable) -> tuple[np.ndarray, list[str]]:
    """Code of each label and the distinct labels as stripped strings; a missing label has code -1.

    Takes lists, arrays, Series of any dtype, and categoricals, whose unused categories are left out.
    """
    if isinstance(labels, str):
        labels = [labels]
    values = labels if isinstance(labels, pd.Series | pd.Index | pd.Categorical | np.ndarray) else list(labels)
    values = pd.Series(values, dtype=None if len(values) else object)
    codes, uniques = pd.factorize(values)
    names = [str(u).strip() for u in uniques]
    if len(set(names)) < len(names):  # " A" and "A", or 1 and "1"
        merged, names_index = pd.factorize(np.asarray(names, dtype=object))
        codes = np.where(codes < 0, -1, merged[codes])
        names = list(names_index)
    return np.asarray(codes, dtype=np.int64), names


def _parse_all(
    labels: Iterable, separator: str | None, control_categories: str | Iterable[str], where: str = "the labels"
) -> tuple[np.ndarray, list[str], list[ParsedLabel]]:
    """Codes, distinct labels and what they parse to; one error for all missing labels, one warning for all duplicates."""
    separator, controls = check_separator(separator), as_control_categories(control_categories)
    codes, names = factorize_labels(labels)
    parsed = [_parse(name, separator, controls) for name in names]
    bad = np.array([_is_missing(p) for p in parsed] + [True])  # the last entry is what code -1 points at
    if bad[codes].any():
        written = sorted(name for name, is_bad in zip(names, bad[:-1], strict=True) if is_bad)
        if (codes < 0).any():
            written.append("NaN")
        raise ValueError(
            f"{plural(int(bad[codes].sum()), 'cell')} of {len(codes):,} in {where} have no perturbation: found {listed(written)}. "
            "Every cell needs a label and every token a name: remove these cells, or give the unperturbed ones the control "
            f"label ({controls[0]!r}); if one of the values does mean control, pass it in control_category."
        )
    doubled = [name for name, p in zip(names, parsed, strict=True) if any(len(where) > 1 for where in p.positions)]
    if doubled:
        warnings.warn(
            f"{plural(len(doubled), 'label')} name a token more than once, which counts as once: {listed(doubled)}.",
            UserWarning,
            stacklevel=settings.warnings_stacklevel,
        )
    return codes, names, parsed


def parse_label(
    label: str, separator: str | None = "+", control_categories: str | Iterable[str] = ("control",)
) -> tuple[str, ...]:
    """Sorted distinct tokens of one label; the empty tuple is control.

    Control labels inside a combination are dropped (``"A+ctrl"`` is ``"A"``).

    Parameters
    ----------
    label
        Perturbation label of a cell.
    separator
        What joins the tokens of a combination; ``None`` never splits.
    control_categories
        Labels that mean "no perturbation".

    Returns
    -------
    Tokens in alphabetical order.

    Raises
    ------
    ValueError
        If the label, or one of its tokens, is missing (``NaN``, ``""``, ``"nan"``, ``"None"``).

    Examples
    --------
    >>> from scvi_causal.data import parse_label
    >>> parse_label("KLF1+BAK1")
    ('BAK1', 'KLF1')
    >>> parse_label("KLF1+ctrl"), parse_label("control")
    (('KLF1',), ())
    """
    _, _, parsed = _parse_all([label], separator, control_categories, where="the label")
    return parsed[0].tokens


def canonical_labels(
    labels: Iterable, separator: str | None = "+", control_categories: str | Iterable[str] = ("control",)
) -> np.ndarray:
    """Labels with sorted tokens and one name for control, so that equal conditions are equal strings.

    Parameters
    ----------
    labels
        (n_cells,) perturbation labels.
    separator, control_categories
        See :func:`parse_label`. Control cells get the first of the control categories.

    Returns
    -------
    (n_cells,) array of ``str`` objects.

    Raises
    ------
    ValueError
        If labels are missing.

    Examples
    --------
    >>> from scvi_causal.data import canonical_labels
    >>> canonical_labels(["B+A", "A+ctrl", "ctrl"], control_categories=["control", "ctrl"]).tolist()
    ['A+B', 'A', 'control']
    """
    codes, _, parsed = _parse_all(labels, separator, control_categories)
    control = as_control_categories(control_categories)[0]
    names = [(separator or "+").join(p.tokens) or control for p in parsed]
    return np.asarray(names, dtype=object)[codes]


def control_mask(
    labels: Iterable, separator: str | None = "+", control_categories: str | Iterable[str] = ("control",)
) -> np.ndarray:
    """(n_cells,) boolean mask of the cells whose label means control.

    Examples
    --------
    >>> from scvi_causal.data import control_mask
    >>> control_mask(["control", "A", "control+control"]).tolist()
    [True, False, True]
    """
    codes, _, parsed = _parse_all(labels, separator, control_categories)
    return np.array([not p.tokens for p in parsed], dtype=bool)[codes]


def _split_dosage(dosage: str, separator: str | None) -> list[float]:
    """Numbers of ``"0.5+1e+2"``; the ``+`` of an exponent does not separate."""
    if separator is None:
        parts = [dosage]
    else:
        parts = re.split(rf"(?<!\d[eE]){re.escape(separator)}", dosage)
    return [float(part) for part in parts]


def _dosage_of(parsed: ParsedLabel, dosage: object, separator: str | None) -> tuple[float, ...]:
    """Dosage of each sorted token; raises ``ValueError`` with the reason alone."""
    if not parsed.tokens:
        return ()
    try:
        given = _split_dosage(dosage, separator) if isinstance(dosage, str) else [float(dosage)]
    except (TypeError, ValueError):
        raise ValueError("not a number") from None
    if len(given) not in (1, parsed.n_parts):
        raise ValueError(f"{len(given)} numbers for {parsed.n_parts} tokens")
    found = []
    for places in parsed.positions:
        of_token = {given[i] if len(given) > 1 else given[0] for i in places}
        if len(of_token) > 1:
            raise ValueError("one token with two different dosages")
        found.append(of_token.pop())
    if not np.isfinite(found).all():
        raise ValueError("not finite")
    if 0.0 in found:
        raise ValueError("dosage 0")
    return tuple(found)


def _parse_dosage_pairs(codes, names, parsed, dosages, separator) -> tuple[np.ndarray, np.ndarray, list[tuple[float, ...]]]:
    """Code of each distinct (label, dosage), the label code of each of them, and its dosages in token order."""
    dosages = pd.Series(list(dosages) if not isinstance(dosages, pd.Series | np.ndarray | pd.Categorical) else dosages)
    if len(dosages) != len(codes):
        raise ValueError(f"There are {len(dosages):,} dosages for {len(codes):,} labels: give one dosage per cell.")
    dosage_codes, dosage_values = pd.factorize(dosages)
    dosage_values = [*dosage_values, np.nan]  # code -1 points at the last
    pairs, pair_codes = np.unique(codes * len(dosage_values) + dosage_codes % len(dosage_values), return_inverse=True)
    label_of_pair = pairs // len(dosage_values)
    found, bad = [], {}
    for k, pair in enumerate(pairs):
        dosage = dosage_values[pair % len(dosage_values)]
        try:
            found.append(_dosage_of(parsed[label_of_pair[k]], dosage, separator))
        except ValueError as error:
            found.append(())
            bad[k] = f"{names[label_of_pair[k]]!r} with dosage {dosage!r} ({error})"
    if bad:
        n_cells = int(np.isin(pair_codes, list(bad)).sum())
        shown = "; ".join(list(bad.values())[:5]) + ("; ..." if len(bad) > 5 else "")
        raise ValueError(
            f"{plural(n_cells, 'cell')} have a dosage that does not fit their perturbation: {shown}. A dosage is one finite "
            f"number other than 0 for all tokens of a cell, or one per token in the order of the label joined by "
            f"{separator or '+'!r} ('0.5{separator or '+'}1'). A cell that received nothing is labelled as control."
        )
    return pair_codes.reshape(-1), label_of_pair, found


def parse_dosages(
    labels: Iterable,
    dosages: Iterable | float | None,
    separator: str | None = "+",
    control_categories: str | Iterable[str] = ("control",),
) -> list[tuple[float, ...]]:
    """Dosages of each cell in the order of its sorted tokens.

    Parameters
    ----------
    labels
        (n_cells,) perturbation labels.
    dosages
        (n_cells,) numbers, each for all tokens of the cell, or strings such as ``"0.5+2"``, one number per part of the label
        *as it is written*: the numbers move with their tokens when these are sorted. A scalar holds for all cells; ``None``
        is 1. What is written for control cells, and for control inside a combination, is ignored. Negative numbers are
        allowed (activation +, interference −).
    separator, control_categories
        See :func:`parse_label`.

    Returns
    -------
    One tuple per cell, as long as the tuple of its tokens; control cells have ``()``.

    Raises
    ------
    ValueError
        If a perturbed cell has a dosage that is 0, not finite or no number, or as many numbers as do not fit its label.

    Examples
    --------
    >>> from scvi_causal.data import parse_dosages
    >>> parse_dosages(["B+A", "A", "control"], ["2+0.5", "1", "0"])
    [(0.5, 2.0), (1.0,), ()]
    """
    codes, names, parsed = _parse_all(labels, separator, control_categories)
    dosages = 1.0 if dosages is None else dosages
    if np.ndim(dosages) == 0:
        dosages = np.full(len(codes), dosages)
    pair_codes, _, found = _parse_dosage_pairs(codes, names, parsed, dosages, separator)
    return [found[code] for code in pair_codes]


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
        _, _, parsed = _parse_all(labels, separator, control_categories)
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
        codes, names, parsed = _parse_all(labels, self.separator, self.control_categories)
        new = sorted({token for p in parsed for token in p.tokens if token not in self._index})
        if new and unknown == "error":
            raise ValueError(self._unknown_message(new))
        if unknown not in ("error", "nan"):
            raise ValueError(f"unknown={unknown!r} is not one of 'error', 'nan'.")
        rows = [[self._index.get(token, -1) for token in p.tokens] for p in parsed]
        if dosages is None or np.ndim(dosages) == 0:
            value = 1.0 if dosages is None else dosages
            values = [_scalar_dosage(p, value, self.separator) for p in parsed]
        else:
            codes, label_of_pair, values = _parse_dosage_pairs(codes, names, parsed, dosages, self.separator)
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
        is_unknown = np.array([np.isnan(unique.data[a:b]).any() for a, b in zip(unique.indptr, unique.indptr[1:])], bool)
        if is_unknown.any():
            raise ValueError(
                f"{plural(int(is_unknown[codes].sum()), 'cell')} carry tokens outside the vocabulary (NaN rows) and have no "
                "label here: take their labels from adata.obs."
            )
        joint, control = self.separator or "+", self.control_categories[0]
        names = [
            joint.join(self.tokens[i] for i in unique.indices[start:stop]) or control
            for start, stop in zip(unique.indptr[:-1], unique.indptr[1:], strict=True)
        ]
        return np.asarray(names, dtype=object)[codes]


def _scalar_dosage(parsed: ParsedLabel, dosage: object, separator: str | None) -> tuple[float, ...]:
    try:
        return _dosage_of(parsed, dosage, separator)
    except ValueError as error:
        raise ValueError(
            f"dosage={dosage!r} does not fit {(separator or '+').join(parsed.tokens)!r} ({error}): pass a finite number other "
            "than 0; a cell that receives nothing has the control label."
        ) from None


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
