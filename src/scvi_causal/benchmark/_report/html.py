"""Blocks as one HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import html
import re
from typing import TYPE_CHECKING

from ._blocks import Bullets, Code, Heading, Picture, Table, Text, Warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._blocks import Block

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; color: #1a1a1a; background: #fff; }
h1 { line-height: 1.2; } h2 { margin-top: 2.6rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; } h3 { margin-top: 1.8rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #1a1a1a; vertical-align: bottom; max-width: 9rem; }
th.words, td.words { text-align: left; }
td.number { white-space: nowrap; }
tr.group td { text-align: left; color: #555; font-size: .85rem; padding-top: .8rem; }
tr.apart td { border-top: 2px solid #1a1a1a; font-style: italic; }
tbody tr:hover { background: #f3f6fa; }
img { max-width: 100%; height: auto; } figure { margin: 1.5rem 0; }
figcaption, .small { color: #4a4a4a; font-size: .9rem; }
.warning { border-left: 6px solid #d55e00; background: #fdf0e6; padding: .6rem 1rem; margin: 1rem 0; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; } code { background: #f4f4f4; padding: 0 .2rem; overflow-wrap: anywhere; }
"""
_INLINE = re.compile(r"\\(.)|`([^`]*)`|\*\*(.+?)\*\*|\*((?:\\.|[^*\\])+)\*")


def to_html(blocks: Sequence[Block]) -> str:
    """The page, with pictures inside it."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Benchmark")
    body = "\n".join(_render(block) for block in blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text_only(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def inline(text: str) -> str:
    """Inline markup as HTML: strong, emphasis, code, escapes; everything else is text."""
    parts, end = [], 0
    for match in _INLINE.finditer(text):
        parts.append(html.escape(text[end : match.start()]))
        escaped, monospaced, strong, emphasised = match.groups()
        if escaped is not None:
            parts.append(html.escape(escaped))
        elif monospaced is not None:
            parts.append(f"<code>{html.escape(monospaced)}</code>")
        elif strong is not None:
            parts.append(f"<strong>{inline(strong)}</strong>")
        else:
            parts.append(f"<em>{inline(emphasised)}</em>")
        end = match.end()
    return "".join(parts) + html.escape(text[end:])


def _text_only(text: str) -> str:
    return re.sub(r"<[^>]+>", "", inline(text))


def _render(block: Block) -> str:
    small = ' class="small"'
    match block:
        case Heading():
            return f"<h{block.level}>{inline(block.text)}</h{block.level}>"
        case Text():
            return f"<p{small if block.small else ''}>{inline(block.text)}</p>"
        case Bullets():
            return "<ul>" + "".join(f"<li>{inline(item)}</li>" for item in block.items) + "</ul>"
        case Warn():
            return f'<p class="warning" role="alert"><strong>Warning.</strong> {inline(block.text)}</p>'
        case Code():
            return f"<pre>{html.escape(block.text)}</pre>"
        case Picture():
            data = base64.b64encode(block.png).decode()
            alt = html.escape(block.alt, quote=True)
            return f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"><figcaption>{inline(block.caption)}</figcaption></figure>'
        case Table():
            return _table(block)


def _table(table: Table) -> str:
    kinds = ["words" if table.is_left(i) else "number" for i in range(len(table.header))]
    cells = zip(kinds, table.header, strict=True)
    head = "".join(f'<th scope="col" class="{kind}">{inline(text)}</th>' for kind, text in cells)
    body = []
    for i, row in enumerate(table.rows):
        if i in table.groups:
            body.append(f'<tr class="group"><td colspan="{len(row)}">{inline(table.groups[i])}</td></tr>')
        style = ' class="apart"' if i in table.apart else ""
        cells = zip(kinds, row, strict=True)
        body.append(
            f"<tr{style}>" + "".join(f'<td class="{kind}">{inline(text)}</td>' for kind, text in cells) + "</tr>"
        )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(body)
        + "\n</tbody></table></div>"
    )
