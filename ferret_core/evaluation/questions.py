"""Files of questions: JSON lines of items, what a builder made, to be asked again of any model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ferret_core.disk import written_whole
from ferret_core.evaluation.benchmark import Item


def write_questions(path: Path, items: Iterable[Item]) -> None:
    """Writes a file, whole or not at all."""
    with written_whole(path) as file:
        for item in items:
            file.write(json.dumps(item.to_json(), ensure_ascii=False).encode() + b"\n")


def read_questions(path: Path) -> Iterator[Item]:
    """The items of a file. Raises `ValueError` naming the line that is none."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield Item.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: line {number}: not a question: {error!r}") from error
