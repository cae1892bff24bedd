"""Blocks as Markdown that reads the same on GitHub and in Sphinx (MyST)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ._blocks import Bullets, Code, Heading, Picture, Table, Text, Warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._blocks import Block


# a bar ends a cell even within code, unless it is escaped
_BAR = re.compile(r"(?<!\\)\|")


def to_markdown(blocks: Sequence[Block], figures: str = "figures") -> str:
    """The page; pictures are looked for in the folder ``figures`` beside it."""
    return "\n\n".join(_render(block, figures) for block in blocks) + "\n"


def _render(block: Block, figures: str) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {block.text}"
        case Text():
            return block.text
        case Bullets():
            return "\n".join(f"- {item}" for item in block.items)
        case Warn():
            return f"> **Warning.** {block.text}"
        case Code():
            return f"```text\n{block.text}\n```"
        case Picture():
            alt = block.alt.replace("[", "(").replace("]", ")")
            return f"![{alt}]({figures}/{block.name})\n\n*{block.caption}*"
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    rule = [":---" if table.is_left(i) else "---:" for i in range(len(table.header))]
    rows = [table.header, rule]
    for i, row in enumerate(table.rows):
        if i in table.groups:
            rows.append([f"*{table.groups[i]}*"] + [""] * (len(row) - 1))
        rows.append([_apart(cell) for cell in row] if i in table.apart else row)
    return "\n".join("| " + " | ".join(_BAR.sub(r"\|", cell) for cell in row) + " |" for row in rows)


def _apart(cell: str) -> str:
    return f"*{cell}*" if cell and not cell.startswith(("*", "`")) else cell
