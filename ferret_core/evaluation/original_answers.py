"""Answers that the original's scripts wrote: `0_of_2.jsonl`, `1_of_2.jsonl`, one for each process. Scored here, asked there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ferret_core.data.build.reading import lines
from ferret_core.evaluation.benchmark import Item, Prediction

_PART = re.compile(r"(\d+)_of_(\d+)\.jsonl")
Row = dict[str, Any]
Match = Callable[[Sequence[Item], Sequence[Row]], list[Prediction]]
"""Puts answers beside their items; what has no answer, or one that is no text, is there without one."""


def read_rows(directory: Path) -> list[Row]:
    """Rows of all parts, in the order of the parts; other files, as the script's own `metric.json`, are left alone.

    Raises:
        ValueError: a part is missing or broken, or there is none.
    """
    parts = {path: match for path in directory.glob("*.jsonl") if (match := _PART.fullmatch(path.name))}
    if not parts:
        raise ValueError(f"{directory}: has no 0_of_1.jsonl, nor other parts of the original's answers")
    totals = {int(match[2]) for match in parts.values()}
    if len(totals) > 1 or {int(match[1]) for match in parts.values()} != set(range(max(totals))):
        raise ValueError(f"{directory}: must hold every part of one run, has {', '.join(sorted(path.name for path in parts))}")
    return [row for path in sorted(parts, key=lambda path: int(parts[path][1])) for row in _rows(path)]


def digest(rows: Sequence[Row]) -> str:
    """SHA-256 of all rows."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def match_by(*keys: str, answer: str) -> Match:
    """Matches rows to the items whose ids are in their fields `keys`, joined by `-`; `answer` is the answer's field.

    Of several rows with the same id the last counts. Rows without these fields are matched by their order, if there are
    as many as items: with one missing, no other could be told from its neighbour.

    Raises (the match):
        ValueError: an answer belongs to no item, or its place does not tell which.
    """

    def match(items: Sequence[Item], rows: Sequence[Row]) -> list[Prediction]:
        if all(key in row for row in rows for key in keys):
            found = {"-".join(str(row[key]) for key in keys): row for row in rows}
            if unknown := found.keys() - {item.id for item in items}:
                raise ValueError(f"{len(unknown)} answers, as {min(unknown)!r}, are to none of the {len(items)} questions")
            return [Prediction(item, _answer(found[item.id], answer) if item.id in found else None) for item in items]
        if len(rows) != len(items):
            raise ValueError(
                f"{len(rows)} answers to {len(items)} questions: without {' and '.join(keys)} they are matched by order, "
                "which takes as many of one as of the other"
            )
        return [Prediction(item, _answer(row, answer)) for item, row in zip(items, rows, strict=True)]

    return match


def _rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}: line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}: line {number}: must be an object")
            yield row


def _answer(row: Row, field: str) -> str | None:
    if field not in row:
        raise ValueError(f"an answer has no field {field!r}: {json.dumps(row)[:200]}")
    return row[field] if isinstance(row[field], str) else None
