"""Dosages of tokens, written as numbers or as strings in the order of the label."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ._labels import ParsedLabel, parse_all
from ._messages import plural

if TYPE_CHECKING:
    from collections.abc import Iterable


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


def parse_dosage_pairs(
    codes, names, parsed, dosages, separator
) -> tuple[np.ndarray, np.ndarray, list[tuple[float, ...]]]:
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
            f"The dosage does not fit the perturbation in {plural(n_cells, 'cell')}: {shown}. A dosage is one finite "
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
    codes, names, parsed = parse_all(labels, separator, control_categories)
    dosages = 1.0 if dosages is None else dosages
    if np.ndim(dosages) == 0:
        dosages = np.full(len(codes), dosages)
    pair_codes, _, found = parse_dosage_pairs(codes, names, parsed, dosages, separator)
    return [found[code] for code in pair_codes]


def scalar_dosage(parsed: ParsedLabel, dosage: object, separator: str | None) -> tuple[float, ...]:
    try:
        return _dosage_of(parsed, dosage, separator)
    except ValueError as error:
        raise ValueError(
            f"dosage={dosage!r} does not fit {(separator or '+').join(parsed.tokens)!r} ({error}): pass a finite number other "
            "than 0; a cell that receives nothing has the control label."
        ) from None
