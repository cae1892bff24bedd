"""Numbers as a reader wants them: no more digits than tell models apart, the same in all of a column."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

MISSING = "–"


def digits_of(values: Iterable[float]) -> int:
    """Decimals for a column: three significant digits for its larger numbers, so that models can be told apart."""
    x = np.abs(np.asarray(list(values), dtype=float))
    x = x[np.isfinite(x)]
    size = float(np.quantile(x, 0.75)) if x.size else 0.0
    if size == 0:
        return 3
    return int(np.clip(2 - np.floor(np.log10(size)), 0, 5)) if size < 0.1 or size >= 1 else 3


def number(value: float, digits: int = 3) -> str:
    """A number with a fixed number of decimals; a dash where there is none, and no minus before zero."""
    if value is None or not np.isfinite(value):
        return MISSING
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def column(values: Iterable[float], digits: int | None = None) -> list[str]:
    """All numbers of a column with the same decimals."""
    values = list(values)
    digits = digits_of(values) if digits is None else digits
    return [number(value, digits) for value in values]


def p_value(value: float) -> str:
    """``0.034``, ``0.0021`` or ``< 0.0001``."""
    if not np.isfinite(value):
        return MISSING
    if value < 0.0001:
        return "< 0.0001"
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}" if value >= 0.0095 else f"{value:.4f}"


def with_interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """``0.12 [0.03, 0.20]``."""
    if not np.isfinite(value):
        return MISSING
    if not (np.isfinite(low) and np.isfinite(high)):
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def seconds(value: float) -> str:
    """CPU-seconds with three significant digits."""
    if not np.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def share(part: float, of: int) -> str:
    """``7 of 8`` (``7.5 of 8`` with a tie)."""
    won = part * of
    return f"{won:.0f} of {of}" if abs(won - round(won)) < 1e-6 else f"{won:.1f} of {of}"


def joined(words: Iterable[str]) -> str:
    """``a, b and c``."""
    words = list(words)
    return ", ".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"
