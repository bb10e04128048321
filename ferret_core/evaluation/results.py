"""Scores to read: a Markdown report, a chart, and the same as JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from ferret_core.evaluation.benchmark import Benchmark
from ferret_core.evaluation.scores import RESAMPLINGS, Score, Scores

_NUMBER = re.compile(r"(-?[\d.,]+(e[-+]\d+)?%?)?")
_ROW, _NAMES, _BAR = 26, 300, 380  # height, and widths, of the chart in pixels


def markdown(benchmark: Benchmark, scores: Scores, facts: Mapping[str, str]) -> str:
    """A report: facts, protocol, figures beside the paper's or the target, counts, and notes."""
    lines = [f"# {benchmark.name}", "", *(f"- {name}: {value}" for name, value in facts.items()), "", benchmark.protocol, ""]
    models = sorted({model for each in scores.scores for model in each.paper}, key=lambda model: (len(model), model))
    heads = ["", "figure", "value", f"95 % interval ({RESAMPLINGS:,} bootstrap samples)", "of", "target"]
    rows = [
        [
            each.group,
            each.figure,
            _number(each.value, each),
            f"{_number(each.low, each)} to {_number(each.high, each)}",
            f"{each.of:,.0f}" if each.of is not None else "",
            f"{each.target:.0%}" if each.target is not None else "",
            *(_number(each.paper[model], each) if model in each.paper else "" for model in models),
        ]
        for each in scores.scores
    ]
    lines.append(table([*heads, *(f"paper, {model}" for model in models)], rows))
    counted = [
        [group.name, f"{group.items:,}", f"{group.missing:,}", *(f"{group.counts[name]:,.0f}" for name in benchmark.counts)]
        for group in scores.groups
    ]
    lines.append(table(["", "questions", "without an answer", *benchmark.counts], counted))
    return "\n".join((*lines, *(f"{note.rstrip()}\n" for note in scores.notes)))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown, without columns that have nothing in them; numbers stand to the right."""
    columns = [column for column in zip(heads, *rows, strict=True) if any(column[1:])]
    rules = ["---:" if all(_NUMBER.fullmatch(cell) for cell in column[1:]) else "---" for column in columns]
    lines = list(zip(*columns, strict=True))
    return "".join(f"| {' | '.join(map(_cell, cells))} |\n" for cells in (lines[0], rules, *lines[1:]))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def chart(scores: Scores) -> str:
    """An SVG of shares as bars, with their intervals, and marks where the target is, or what the paper has."""
    shares = [each for each in scores.scores if each.percent]
    most = max((1.0, *(each.high for each in shares)))
    width, height = _NAMES + _BAR + 70, _ROW * len(shares) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, each in enumerate(shares):
        top = 12 + i * _ROW
        low, high, end = (_NAMES + _BAR * max(value, 0.0) / most for value in (each.low, each.high, each.value))
        colour = "#8a939e" if each.target is None else "#2b8a3e" if each.value >= each.target else "#c2410c"
        parts += [
            f'<text x="{_NAMES - 8}" y="{top + 14}" text-anchor="end">{escape(f"{each.group} {each.figure}".strip())}</text>',
            f'<rect x="{_NAMES}" y="{top}" width="{_BAR}" height="18" fill="#eef0f2"/>',
            f'<rect x="{_NAMES}" y="{top}" width="{end - _NAMES:.1f}" height="18" fill="{colour}"/>',
            f'<path d="M{low:.1f} {top + 9}H{high:.1f}" stroke="#111" stroke-width="1.5"/>',
            f'<text x="{_NAMES + _BAR + 8}" y="{top + 14}">{each.value:.1%}</text>',
        ]
        beside = list(each.paper.values()) if each.target is None else [each.target]
        parts += [
            f'<path d="M{_NAMES + _BAR * mark / most:.1f} {top - 3}v24" stroke="#111" stroke-width="3"/>' for mark in beside
        ]
    note = "bar: share, line: its 95 % interval, mark: target, or the paper's"
    parts.append(f'<text x="{_NAMES}" y="{height - 12}" fill="#555">{note}</text></svg>')
    return "\n".join(parts) + "\n"


def to_json(benchmark: Benchmark, scores: Scores, facts: Mapping[str, str]) -> dict[str, Any]:
    """The same for machines; shares from 0 to 1."""
    return {
        "benchmark": benchmark.name,
        **facts,
        "protocol": benchmark.protocol,
        "groups": [asdict(group) for group in scores.groups],
        "scores": [asdict(each) for each in scores.scores],
        "notes": list(scores.notes),
    }


def _number(value: float, score: Score) -> str:
    return f"{value:.2%}" if score.percent else f"{value:.4g}"
