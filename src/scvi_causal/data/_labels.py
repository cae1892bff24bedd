"""Perturbation labels taken apart: which tokens they name, which of them mean control, which are missing."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scvi import settings

from ._messages import listed, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MISSING = frozenset({"", "nan", "none", "<na>", "null"})
# GEARS writes a single perturbation as "A+ctrl"; next to a named token these can mean nothing else.
_FILLERS = frozenset({"ctrl", "control"})
_CONTROL_LOOKALIKES = frozenset(
    "control controls ctrl ctl negative negativecontrol negcontrol negctrl nt ntc nontargeting nontarget "
    "nontargetingcontrol nontargetcontrol safetargeting safeharbor scramble scrambled unperturbed untreated vehicle "
    "dmso pbs mock wt wildtype aavs1 intergenic empty emptyvector none baseline unstimulated unstim resting".split()
)
_UNASSIGNED_LOOKALIKES = frozenset("unassigned unknown ambiguous undetermined multiplet doublet".split())


class ParsedLabel(NamedTuple):
    """A label taken apart; ``positions[i]`` are the places in the label at which ``tokens[i]`` was written."""

    tokens: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    n_parts: int


def looks_like_control(label: str) -> bool:
    """Whether a label is one of the usual names of control cells (``"ctrl"``, ``"non-targeting_1"``, ``"DMSO"``, ...).

    Only ever used for hints in messages: no cell is made a control because of its looks.
    """
    without_number = re.sub(r"[\W_]+\d+$", "", str(label).lower())
    return re.sub(r"[\W_]+", "", without_number) in _CONTROL_LOOKALIKES


def looks_unassigned(label: str) -> bool:
    """Whether a label says that nobody knows what the cell received (``"unassigned"``, ``"doublet"``, ...)."""
    return str(label).strip().lower() in _UNASSIGNED_LOOKALIKES


def as_control_categories(control_category: str | Iterable[str]) -> tuple[str, ...]:
    """One or several control labels as a tuple of distinct strings, in the order given; the first is the canonical one."""
    given = (
        [control_category]
        if isinstance(control_category, str) or not np.iterable(control_category)
        else control_category
    )
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


def parse_all(
    labels: Iterable,
    separator: str | None,
    control_categories: str | Iterable[str],
    warn: bool = False,
) -> tuple[np.ndarray, list[str], list[ParsedLabel]]:
    """Codes, distinct labels and what they parse to; one error for all missing labels, at most one warning."""
    separator, controls = check_separator(separator), as_control_categories(control_categories)
    codes, names = factorize_labels(labels)
    parsed = [_parse(name, separator, controls) for name in names]
    bad = np.array([_is_missing(p) for p in parsed] + [True])  # the last entry is what code -1 points at
    if bad[codes].any():
        written = sorted(name for name, is_bad in zip(names, bad[:-1], strict=True) if is_bad)
        if (codes < 0).any():
            written.append("NaN")
        raise ValueError(
            f"No perturbation is named for {plural(int(bad[codes].sum()), 'cell')} of {len(codes):,}: found {listed(written)}. "
            "Every cell needs a label and every token a name: remove these cells, or give the unperturbed ones the control "
            f"label ({controls[0]!r}); if one of the values does mean control, pass it in control_category."
        )
    if warn:
        doubled = [name for name, p in zip(names, parsed, strict=True) if any(len(where) > 1 for where in p.positions)]
        if doubled:
            warnings.warn(
                f"A token that a label names more than once counts once, in {plural(len(doubled), 'label')}: {listed(doubled)}.",
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
    _, _, parsed = parse_all([label], separator, control_categories, warn=True)
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
    codes, _, parsed = parse_all(labels, separator, control_categories)
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
    codes, _, parsed = parse_all(labels, separator, control_categories)
    return np.array([not p.tokens for p in parsed], dtype=bool)[codes]
