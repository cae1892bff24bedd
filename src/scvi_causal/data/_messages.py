"""Pieces of error messages, so that every error names the offending values in the same way."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def listed(values: Iterable, limit: int = 8) -> str:
    """``'a', 'b', 'c' and 12 more``: at most ``limit`` values, quoted."""
    values = [str(v) for v in values]
    shown = ", ".join(repr(v) for v in values[:limit])
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"


def plural(n: int, noun: str, nouns: str | None = None) -> str:
    """``1 cell``, ``2,000 cells``."""
    return f"{n:,} {noun if n == 1 else (nouns or noun + 's')}"


def suggest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Known names that look like ``name`` or contain it, the nearest first; upper and lower case are the same."""
    by_lower: dict[str, str] = {}
    for k in known:
        by_lower.setdefault(str(k).lower(), str(k))
    asked = str(name).lower()
    near = get_close_matches(asked, list(by_lower), n=limit, cutoff=0.6)
    if len(asked) >= 3:
        near += [k for k in by_lower if asked in k and k not in near]
    return [by_lower[k] for k in near[:limit]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'perturbation'?`` or the empty string."""
    near = suggest(name, known)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
