"""The record format of grounded data: an image, and a conversation that points at regions and locates things in boxes.

One record is one JSON object:

    {"id": "playground-test-7", "image": "scenes/7.png", "size": [417, 380],
     "regions": [{"point": [96.5, 120.5]}],
     "boxes": [[60, 80, 140, 190]],
     "turns": [{"question": "What is [region0]?", "answer": "It is a dog [box0]."}],
     "dataset": "playground", "license": "MIT", "split": "test"}

A region is a gesture (point, box, polygon, scribble, mask), or an object, `{"object": [60, 80, 140, 190], "mask": {RLE}}`,
whose mask may be missing: training points at it in one way or another.

Texts point with `[regionN]` (coordinates and a region embedding in the prompt) and locate with `[boxN]` (coordinates
only); both index the lists of the record. All coordinates are pixels of the image. A conversation about text alone has
`"image": ""` and no size, regions or boxes. `docs/data.md` describes every field.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from ferret_core.geometry import BRUSH_WIDTH, Box, ImageSize, Mask, Point, Polygon, Region, Scribble
from ferret_core.prompt import Turn, mentioned_boxes, mentioned_regions

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Object:
    """Something to point at: its box and, where it is known, its mask, in image pixels."""

    box: Box
    mask: Mask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image and one conversation about it."""

    id: str
    image: str
    """Path or key of the image; empty for a conversation about text alone."""
    size: ImageSize
    """Of the image, upright; 0 x 0 without one."""
    turns: tuple[Turn, ...]
    regions: tuple[Region | Object, ...] = ()
    """What the texts point at as `[regionN]`."""
    boxes: tuple[Box, ...] = ()
    """What they locate as `[boxN]`."""
    dataset: str = ""
    """Where the record comes from."""
    license: str = ""
    """What the picture may be used for, such as "CC-BY-4.0"."""
    split: str = "train"
    """One of `SPLITS`; `ferret_core.data.checks` looks, so that a file of others can be read and put right."""

    def __post_init__(self) -> None:
        if not self.image and (self.regions or self.boxes):
            raise ValueError(f"record {self.id}: regions and boxes need an image")
        for turn in self.turns:
            for text in (turn.question, turn.answer or ""):
                for name, names, used, known in (
                    ("region", "regions", mentioned_regions(text), self.regions),
                    ("box", "boxes", mentioned_boxes(text), self.boxes),
                ):
                    for number in used:
                        if number >= len(known):
                            raise ValueError(f"record {self.id}: [{name}{number}] is not among its {len(known)} {names}")

    @property
    def outlines(self) -> dict[int, Region]:
        """What the texts point at, by the N of `[regionN]`: a gesture itself, an object as its box. In image pixels."""
        return {i: region.box if isinstance(region, Object) else region for i, region in enumerate(self.regions)}

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return {
            "id": self.id,
            "image": self.image,
            "size": list(self.size),
            "regions": [region_to_json(region) for region in self.regions],
            "boxes": [list(box.coordinates(self.size)) for box in self.boxes],
            "turns": [{"question": turn.question, "answer": turn.answer} for turn in self.turns],
            "dataset": self.dataset,
            "license": self.license,
            "split": self.split,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        """Inverse of `to_json`. Raises `ValueError` naming the record and the field that is missing or wrong."""
        if not isinstance(value, dict):
            raise ValueError(f"a record is a JSON object, got {_shorten(value)}")
        try:
            fields: dict[str, Any] = {
                "id": _field(value, "id", str),
                "image": _field(value, "image", str),
                "size": _size_from_json(_field(value, "size", list)) if value["image"] else ImageSize(0, 0),
                "turns": _each(value, "turns", _turn_from_json),
                "regions": _each(value, "regions", region_from_json, []),
                "boxes": _each(value, "boxes", lambda box: Box(*_numbers(box, 4)), []),
                "dataset": _field(value, "dataset", str, ""),
                "license": _field(value, "license", str, ""),
                "split": _field(value, "split", str, "train"),
            }
        except ValueError as error:
            raise ValueError(f"record {value.get('id', '?')}: {error}") from error
        return cls(**fields)


def region_to_json(region: Region | Object) -> dict[str, Any]:
    """A region as a JSON object whose first key is its type."""
    match region:
        case Object(Box(x1, y1, x2, y2), mask):
            return {"object": [x1, y1, x2, y2]} | ({"mask": mask.to_coco()} if mask else {})
        case Point(x, y):
            return {"point": [x, y]}
        case Box(x1, y1, x2, y2):
            return {"box": [x1, y1, x2, y2]}
        case Polygon(points):
            return {"polygon": [list(point) for point in points]}
        case Scribble(points, width):
            return {"scribble": [list(point) for point in points], "width": width}
        case Mask():
            return {"mask": region.to_coco()}


def region_from_json(value: dict[str, Any]) -> Region | Object:
    """Inverse of `region_to_json`. Raises `ValueError` for an unknown type or malformed numbers."""
    match value:
        case {"object": box, **rest}:
            return Object(Box(*_numbers(box, 4)), Mask.from_coco(rest["mask"]) if rest.get("mask") else None)
        case {"point": point}:
            return Point(*_numbers(point, 2))
        case {"box": box}:
            return Box(*_numbers(box, 4))
        case {"polygon": points}:
            return Polygon(points)
        case {"scribble": points, **rest}:
            return Scribble(points, rest.get("width", BRUSH_WIDTH))
        case {"mask": rle}:
            return Mask.from_coco(rle)
    raise ValueError(
        f"expected one of object, point, box, polygon, scribble or mask with its coordinates, got {_shorten(value)}"
    )


# ---- fields of JSON --------------------------------------------------------------------------------------------------


def _field(value: dict[str, Any], name: str, kind: type[_T], default: Any = ...) -> _T:
    """A field of an object; with a `default` it may be missing or null."""
    found = value.get(name, default)
    if found is ...:
        raise ValueError(f"field '{name}' is missing")
    if found is None and default is not ...:
        found = default
    if found is not default and not isinstance(found, kind):
        raise ValueError(f"field '{name}' must be {'text' if kind is str else 'a list'}, got {_shorten(found)}")
    return found


def _each(value: dict[str, Any], name: str, read: Callable[[Any], _T], default: Any = ...) -> tuple[_T, ...]:
    """What `read` makes of each element of a list; errors name the element."""
    elements = []
    for i, element in enumerate(_field(value, name, list, default)):
        try:
            elements.append(read(element))
        except ValueError as error:
            raise ValueError(f"{name}[{i}]: {error}") from error
    return tuple(elements)


def _turn_from_json(value: Any) -> Turn:
    if not isinstance(value, dict):
        raise ValueError(f"a turn has a question and an answer, got {_shorten(value)}")
    return Turn(_field(value, "question", str), _field(value, "answer", str, None))


def _size_from_json(value: list[Any]) -> ImageSize:
    if len(value) != 2 or not all(isinstance(side, int) and side > 0 for side in value):
        raise ValueError(f"field 'size' must be [width, height] in whole pixels, at least 1; got {_shorten(value)}")
    return ImageSize(*value)


def _numbers(value: Any, count: int) -> list[float]:
    finite = isinstance(value, list | tuple) and all(isinstance(v, int | float) and abs(v) < math.inf for v in value)
    if not finite or len(value) != count:
        raise ValueError(f"expected {count} numbers, got {_shorten(value)}")
    return list(value)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
