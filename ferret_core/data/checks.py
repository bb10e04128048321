"""What is wrong with records before anyone trains on them: more than their schema can say.

    for problem in find_problems("grit.jsonl", Images("images")):
        print(problem)

`check_record` is the same for one record in memory, as an error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferret_core.data.files import PLACES, try_records
from ferret_core.data.images import Images
from ferret_core.data.records import SPLITS, Object, Record
from ferret_core.geometry import Region, RegionError
from ferret_core.images import MAX_PIXELS
from ferret_core.prompt import check_text

_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a record cannot be learned from."""

    path: Path
    line: int
    """Its place in the file: line, row or entry, from 1."""
    dataset: str
    """Its dataset; empty where it cannot be read."""
    reason: str
    """In a few words that problems of a kind share."""
    detail: str
    """The record, the field and the value."""

    def __str__(self) -> str:
        dataset = f" ({self.dataset})" if self.dataset else ""
        return f"{self.path}: {PLACES[self.path.suffix]} {self.line}{dataset}: {self.detail}"


def check_record(record: Record) -> None:
    """Raises `ValueError` naming the record and the first thing that is wrong with it."""
    for _, detail in find_faults(record):
        raise ValueError(f"record {record.id}: {detail}")


def find_problems(path: str | Path, images: Images | None = None) -> Iterator[Problem]:
    """Everything that is wrong with the records of a file, in order.

    Args:
        path: as of `read_records`.
        images: where the pictures are, each of which is then opened.
    """
    for _, problems in examine(path, images):
        yield from problems


def examine(path: str | Path, images: Images | None = None) -> Iterator[tuple[Record | ValueError, list[Problem]]]:
    """Each record of a file, or the error it is read with, and what is wrong with it. Args as of `find_problems`."""
    path = Path(path)
    lines: dict[str, int] = {}  # by record id
    records = try_records(path, images)
    opened = _open_pictures(records, images) if images else ((record, None) for record in records)
    for line, (record, wrong) in enumerate(opened, 1):
        if isinstance(record, ValueError):
            place = f"{path}: {PLACES[path.suffix]} {line}"
            dataset = ""
            faults = [("not a record", str(record).removeprefix(place).lstrip(": "))]
        else:
            dataset = record.dataset
            faults = [(reason, f"record {record.id}: {detail}") for reason, detail in find_faults(record)]
            if (first := lines.setdefault(record.id, line)) != line:
                faults.append(("duplicate id", f"record {record.id}: has the id of {PLACES[path.suffix]} {first}"))
            if wrong:
                faults.append(("picture missing, unreadable or of another size", wrong))
        where: Any = {"path": path, "line": line, "dataset": dataset}
        yield record, [Problem(**where, reason=reason, detail=detail) for reason, detail in faults]


def _open_pictures(records: Iterable[Record | ValueError], images: Images) -> Iterator[tuple[Record | ValueError, str | None]]:
    """Each record, and what is wrong with its picture. Threads open pictures ahead, so that a distant store holds nobody up."""

    def wrong(record: Record | ValueError) -> str | None:
        try:
            if isinstance(record, Record) and record.image:
                images.open(record)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        ahead: deque[tuple[Record | ValueError, Future[str | None]]] = deque()
        for record in records:
            ahead.append((record, pool.submit(wrong, record)))
            if len(ahead) > 4 * _THREADS:
                first, fault = ahead.popleft()
                yield first, fault.result()
        for first, fault in ahead:
            yield first, fault.result()


def find_faults(record: Record) -> Iterator[tuple[str, str]]:
    """(reason, detail) of everything that is wrong with a record by itself."""
    if record.split not in SPLITS:
        yield "unknown split", f"split must be one of {', '.join(SPLITS)}, got {record.split!r}"
    yield from _text_faults(record)
    if not record.image:
        return
    width, height = record.size
    if min(record.size) <= 0 or width * height > MAX_PIXELS:
        yield "size out of range", f"size must be positive and at most {MAX_PIXELS:,} pixels, got {record.size}"
        return
    for i, region in enumerate(record.regions):
        # An object's box need not hold a pixel of its mask, but both lie in the image.
        shapes: list[Region] = [region.box, *filter(None, [region.mask])] if isinstance(region, Object) else [region]
        for shape in shapes:
            yield from _shape_faults(shape, record, f"regions[{i}]")
    for i, box in enumerate(record.boxes):
        yield from _shape_faults(box, record, f"boxes[{i}]")


def _text_faults(record: Record) -> Iterator[tuple[str, str]]:
    regions = record.outlines
    if not record.turns:
        yield "empty conversation", "turns must not be empty"
    for i, turn in enumerate(record.turns):
        for name, text in (("question", turn.question), ("answer", turn.answer or "")):
            if not text.strip():
                yield f"{name} missing", f"turns[{i}].{name} must not be empty"
                continue
            try:
                check_text(text, regions, f"turns[{i}].{name}")
                text.encode()
            except UnicodeEncodeError as error:
                yield "text not Unicode", f"turns[{i}].{name}: {error.reason} at character {error.start}"
            except ValueError as error:
                yield "reserved word in a text", str(error)


def _shape_faults(shape: Region, record: Record, name: str) -> Iterator[tuple[str, str]]:
    try:
        shape.to_mask(record.size)
    except RegionError as error:
        yield f"{shape.kind} does not fit the image", f"{name}: {error}"
