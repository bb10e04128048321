"""What is in files of records: how much of what, for the eye and for programs.

statistics = collect(read_records("grit.jsonl"))
print(statistics.to_text())
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ferret_core.data.page import bars, card, heat_map, histogram, page, tiles
from ferret_core.data.records import Object, Record
from ferret_core.geometry import Box, ImageSize, Region
from ferret_core.prompt import mentioned_boxes

SIZE_BINS, POSITION_BINS = 10, 16

_NOTHING = "(none)"  # where a dataset or a licence is not named


@dataclass(kw_only=True)
class Statistics:
    """Counts over records. A `Counter` by number holds how many answers have that number."""

    records: int = 0
    images: int = 0
    """Different pictures."""
    turns: int = 0
    boxes: int = 0
    regions: Counter[str] = field(default_factory=Counter)
    """By kind; objects with a mask apart from those without."""
    boxes_per_answer: Counter[int] = field(default_factory=Counter)
    words_per_answer: Counter[int] = field(default_factory=Counter)
    """Words, placeholders not counted."""
    datasets: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    box_sizes: list[int] = field(default_factory=lambda: [0] * SIZE_BINS)
    """Boxes by the root of their share of the picture's area, in tenths."""
    box_positions: list[list[int]] = field(default_factory=lambda: [[0] * POSITION_BINS for _ in range(POSITION_BINS)])
    """Boxes by their middle, `[row][column]` of a grid over the picture."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; counters by falling count or rising number."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        for name in ("boxes_per_answer", "words_per_answer"):
            values[name] = {str(number): count for number, count in sorted(values[name].items())}
        for name in ("regions", "datasets", "licenses", "splits"):
            values[name] = dict(values[name].most_common())
        return values

    def to_text(self) -> str:
        """A table for the terminal."""
        boxes, words = self.boxes_per_answer, self.words_per_answer
        rows = [
            ("records", f"{self.records:,}", f"of {self.images:,} pictures"),
            ("turns", f"{self.turns:,}", f"{_ratio(self.turns, self.records):.1f} a record"),
            ("regions", f"{self.regions.total():,}", _list(self.regions)),
            ("boxes", f"{self.boxes:,}", f"{_mean(boxes):.1f} an answer, at most {max(boxes, default=0)}"),
            ("words", f"{_total(words):,}", f"{_mean(words):.1f} an answer, at most {max(words, default=0)}"),
            ("box sides", "", ", ".join(f"up to {side} {count:,}" for side, count in self._size_shares().items() if count)),
            ("datasets", f"{len(self.datasets):,}", _list(self.datasets, self.records)),
            ("licences", f"{len(self.licenses):,}", _list(self.licenses, self.records)),
            ("splits", f"{len(self.splits):,}", _list(self.splits, self.records)),
        ]
        left, middle = (max(len(row[i]) for row in rows) for i in (0, 1))
        return "\n".join(f"{name:{left}}  {count:>{middle}}  {rest}".rstrip() for name, count, rest in rows)

    def to_html(self, title: str) -> str:
        """A page with charts; `title` says what was counted."""
        numbers = {
            "records": f"{self.records:,}",
            "pictures": f"{self.images:,}",
            "turns": f"{self.turns:,}",
            "regions": f"{self.regions.total():,}",
            "boxes": f"{self.boxes:,}",
            "boxes an answer": f"{_mean(self.boxes_per_answer):.1f}",
            "words an answer": f"{_mean(self.words_per_answer):.1f}",
        }
        cards = [
            card("Datasets", bars(dict(self.datasets.most_common()))),
            card("Licences", bars(dict(self.licenses.most_common()))),
            card("Splits", bars(dict(self.splits.most_common()))),
            card("Regions pointed at", bars(dict(self.regions.most_common()))),
            card("Boxes an answer", histogram(_ranges(self.boxes_per_answer, (0, 1, 2, 3, 4, 5, 10, 20)))),
            card("Words an answer", histogram(_ranges(self.words_per_answer, (0, 1, 3, 6, 11, 21, 41, 81, 161)))),
            card("Side of a box, of the picture's", histogram(self._size_shares())),
            card("Middle of a box in the picture", heat_map(self.box_positions)),
        ]
        return page(title, f"{self.records:,} records", f'{tiles(numbers)}<div class="grid">{"".join(cards)}</div>')

    def _size_shares(self) -> dict[str, int]:
        return {f"{100 * (i + 1) // SIZE_BINS} %": count for i, count in enumerate(self.box_sizes)}


def collect(records: Iterable[Record]) -> Statistics:
    """Counts over records, in one pass."""
    statistics, images = Statistics(), set()
    for record in records:
        images |= {record.image} - {""}
        statistics.records += 1
        statistics.turns += len(record.turns)
        statistics.boxes += len(record.boxes)
        statistics.regions.update(map(_kind, record.regions))
        for turn in record.turns:
            if turn.answer is not None:
                statistics.boxes_per_answer[len(mentioned_boxes(turn.answer))] += 1
                statistics.words_per_answer[sum(not word.startswith("[") for word in turn.answer.split())] += 1
        statistics.datasets[record.dataset or _NOTHING] += 1
        statistics.licenses[record.license or _NOTHING] += 1
        statistics.splits[record.split] += 1
        for box in record.boxes:
            _add_box(statistics, box, record.size)
    statistics.images = len(images)
    return statistics


def _add_box(statistics: Statistics, box: Box, size: ImageSize) -> None:
    side = math.sqrt(box.clamp(size).area / (size.width * size.height))
    statistics.box_sizes[_bin(side, SIZE_BINS)] += 1
    column, row = (box.x1 + box.x2) / 2 / size.width, (box.y1 + box.y2) / 2 / size.height
    statistics.box_positions[_bin(row, POSITION_BINS)][_bin(column, POSITION_BINS)] += 1


def _bin(share: float, bins: int) -> int:
    return min(max(int(share * bins), 0), bins - 1)


def _kind(region: Region | Object) -> str:
    if isinstance(region, Object):
        return "object with mask" if region.mask else "object"
    return region.kind


def _ranges(counts: Counter[int], starts: tuple[int, ...]) -> dict[str, int]:
    """Counts by ranges of numbers, each from one start to the next."""
    ranges = {}
    for start, following in zip(starts, (*starts[1:], None), strict=True):
        label = f"{start}+" if following is None else str(start) if following == start + 1 else f"{start}-{following - 1}"
        ranges[label] = sum(
            count for number, count in counts.items() if start <= number and (not following or number < following)
        )
    return ranges


def _list(counts: Counter[str], total: int = 0) -> str:
    """The eight largest, and how many more there are."""
    shares = {name: f" ({100 * count / total:.0f} %)" if total else "" for name, count in counts.items()}
    parts = [f"{name} {count:,}{shares[name]}" for name, count in counts.most_common(8)]
    return ", ".join(parts) + (f", {len(counts) - 8} more" if len(counts) > 8 else "")


def _total(counts: Counter[int]) -> int:
    return sum(number * count for number, count in counts.items())


def _mean(counts: Counter[int]) -> float:
    return _ratio(_total(counts), counts.total())


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
