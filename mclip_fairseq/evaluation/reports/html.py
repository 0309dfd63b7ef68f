"""The design that all HTML pages share: one kind of table, light and dark, from a phone's width upwards, no network."""

from __future__ import annotations

import html
from collections.abc import Sequence

STYLE = """
:root {
  color-scheme: light dark;
  --paper: light-dark(#fff, #16181b); --ink: light-dark(#1d2126, #e8eaed); --quiet: light-dark(#5b636d, #a2aab4);
  --line: light-dark(#d9dde2, #353a41); --first: light-dark(#2171b5, #6baed6); --second: light-dark(#c3c7cc, #5a6068);
  --right: light-dark(#1a9850, #41c478);
}
* { box-sizing: border-box }
body {
  font: 1rem/1.5 Embedded, system-ui, "Noto Sans", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai",
    "Noto Sans CJK JP", "Noto Sans JP", "Noto Sans KR", "Noto Sans SC", sans-serif;
  margin: 1.5rem auto; max-width: 72rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  overflow-wrap: break-word;
}
h1, h2 { line-height: 1.25 }
.wide { overflow-x: auto; margin: .5rem 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
td:first-child, th:first-child { text-align: left }
tr.sum td { font-weight: 600 }
small, figcaption { color: var(--quiet) }
img, svg { max-width: 100% }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
"""


def page(title: str, body: Sequence[str], style: str = "") -> str:
    """A whole page in one file.

    Args:
        title: plain text.
        body: HTML.
        style: CSS besides `STYLE`.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>'


def table(rows: Sequence[Sequence[str]], sums: int = 0) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        rows: plain text, the header first; an empty header is left out.
        sums: how many of the last rows are sums or means.
    """
    parts = []
    for number, row in enumerate(rows):
        if number == 0 and not any(row):
            continue
        kind = "td" if number else "th"
        emphasis = ' class="sum"' if number and number >= len(rows) - sums else ""
        cells = "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)
        parts.append(f"<tr{emphasis}>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(parts)}</table></div>'
