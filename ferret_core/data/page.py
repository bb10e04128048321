"""The look of the HTML pages about data: one file each, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark;
        --ink: #1d2530; --soft: #667085; --line: #e3e7ee; --card: #fff; --back: #f5f6f9; --bar: #4363d8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #303847; --card: #1b212c; --back: #11151c; --bar: #7f97f0 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem; max-width: 76rem; background: var(--back); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1rem; margin: 0 0 .75rem }
p.note, small { color: var(--soft) }
p.note { margin: .25rem 0 1.5rem }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.25rem }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(21rem, 1fr)); gap: 1rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin-bottom: 1rem }
.tiles b { display: block; font-size: 1.6rem; line-height: 1.2 }
table { width: 100%; border-collapse: collapse }
td { padding: .15rem .5rem .15rem 0 }
td:nth-child(2) { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
td:last-child { width: 40%; padding: 0 }
td i { display: block; height: .7rem; min-width: 1px; border-radius: 3px; background: var(--bar) }
svg { display: block; width: 100% }
svg text { fill: var(--soft); font-size: 11px; text-anchor: middle }
svg .bar, svg .cell { fill: var(--bar) }
"""


def page(title: str, note: str, body: str, style: str = "") -> str:
    """A whole page. `title` and `note` are text, `body` is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="note">{escape(note)}</p>
{body}
</body>
</html>
"""


def card(title: str, body: str) -> str:
    """A titled box on a page."""
    return f'<section class="card"><h2>{escape(title)}</h2>{body}</section>'


def tiles(numbers: Mapping[str, str]) -> str:
    """A row of large numbers by their name."""
    cards = (
        f'<div class="card"><b>{escape(number)}</b><small>{escape(name)}</small></div>' for name, number in numbers.items()
    )
    return f'<div class="tiles">{"".join(cards)}</div>'


def bars(counts: Mapping[str, int]) -> str:
    """A table of counts, each with its share of all as a bar."""
    total = sum(counts.values()) or 1
    rows = (
        f"<tr><td>{escape(name)}</td><td>{count:,} <small>{100 * count / total:.1f} %</small></td>"
        f'<td><i style="width: {count / total:.2%}"></i></td></tr>'
        for name, count in counts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def histogram(counts: Mapping[str, int]) -> str:
    """Upright bars over their labels, in order; a bar tells its count when pointed at."""
    width, height, step = 400, 130, 400 / max(1, len(counts))
    top = max(counts.values(), default=0) or 1
    shapes = []
    for i, (label, count) in enumerate(counts.items()):
        tall = count / top * height
        place = f'x="{i * step + 1.5:.1f}" y="{height - tall:.1f}" width="{step - 3:.1f}" height="{tall:.1f}"'
        shapes.append(
            f'<rect class="bar" {place} rx="2"><title>{escape(label)}: {count:,}</title></rect>'
            f'<text x="{(i + 0.5) * step:.1f}" y="{height + 15}">{escape(label)}</text>'
        )
    return f'<svg viewBox="0 0 {width} {height + 20}" role="img">{"".join(shapes)}</svg>'


def heat_map(counts: Sequence[Sequence[int]]) -> str:
    """Cells of a grid, rows from the top: the more, the stronger."""
    top = max((count for row in counts for count in row), default=0) or 1
    rows = (_heat_row(y, row, top) for y, row in enumerate(counts))
    return f'<svg viewBox="0 0 {len(counts[0]) * 20} {len(counts) * 15}" role="img">{"".join(rows)}</svg>'


def _heat_row(y: int, row: Iterable[int], top: int) -> str:
    return "".join(
        f'<rect class="cell" x="{x * 20}" y="{y * 15}" width="19" height="14" rx="2" opacity="{0.06 + 0.94 * count / top:.3f}">'
        f"<title>{count:,}</title></rect>"
        for x, count in enumerate(row)
    )
