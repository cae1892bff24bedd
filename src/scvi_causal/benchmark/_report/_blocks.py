"""What a report consists of. Both files are written from the same blocks, so that they say the same."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SPECIAL = re.compile(r"([\\`*\[\]<>|$#~])")


def plain(text) -> str:
    """Text from outside (names, messages) with everything escaped that the inline markup would read as markup.

    The markup of :class:`Text` and of cells is ``**strong**``, ``*emphasis*``, `` `code` `` and backslash escapes.
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def code(text) -> str:
    """Text from outside as code, on one line."""
    return "`" + " ".join(str(text).replace("`", "'").split()) + "`"


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; ``small`` for explanations below a table."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: list[str]


@dataclass(frozen=True)
class Warn:
    """What nobody may overlook."""

    text: str


@dataclass(frozen=True)
class Code:
    """Commands, as they are."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text with inline markup; the first ``n_left`` columns are left-aligned, numbers to the right of them.

    ``groups`` gives a label to write above a row (by its position), ``apart`` the rows that are no competitors.
    """

    header: list[str]
    rows: list[list[str]]
    n_left: int = 1
    left: frozenset[int] = frozenset()
    groups: dict[int, str] = field(default_factory=dict)
    apart: frozenset[int] = frozenset()

    def is_left(self, column: int) -> bool:
        """Whether a column holds words."""
        return column < self.n_left or column in self.left


@dataclass(frozen=True)
class Picture:
    """A PNG, its file name without folder, what is seen on it (for those who do not see it), and a caption."""

    name: str
    png: bytes
    alt: str
    caption: str


Block = Heading | Text | Bullets | Warn | Code | Table | Picture
