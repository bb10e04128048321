"""The record format of grounded data: an image, and a conversation that points at regions and locates things in boxes.

One record is one JSON object:

    {"id": "playground-test-7", "image": "scenes/7.png", "size": [417, 380],
     "regions": [{"point": [96.5, 120.5]}],
     "boxes": [[60, 80, 140, 190]],
     "turns": [{"question": "What is [region0]?", "answer": "It is a dog [box0]."}],
     "dataset": "playground", "license": "MIT", "split": "test"}

Texts point with `[regionN]` (coordinates and a region embedding in the prompt) and locate with `[boxN]` (coordinates
only); both index the lists of the record. All coordinates are pixels of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ferret_core.geometry import BRUSH_WIDTH, Box, ImageSize, Mask, Point, Polygon, Region, Scribble
from ferret_core.prompt import Turn, mentioned_boxes, mentioned_regions


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image and one conversation about it."""

    id: str
    image: str
    """Path or key of the image."""
    size: ImageSize
    turns: tuple[Turn, ...]
    regions: tuple[Region, ...] = ()
    boxes: tuple[Box, ...] = ()
    dataset: str = ""
    license: str = ""
    split: str = "train"

    def __post_init__(self) -> None:
        for turn in self.turns:
            for text in (turn.question, turn.answer or ""):
                for name, used, known in (
                    ("region", mentioned_regions(text), self.regions),
                    ("box", mentioned_boxes(text), self.boxes),
                ):
                    for number in used:
                        if number >= len(known):
                            raise ValueError(f"record {self.id}: [{name}{number}] is not among its {len(known)} {name}s")

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
        """Inverse of `to_json`. Raises `ValueError` naming the field that is missing or wrong."""
        try:
            return cls(
                id=value["id"],
                image=value["image"],
                size=ImageSize(*value["size"]),
                turns=tuple(Turn(turn["question"], turn["answer"]) for turn in value["turns"]),
                regions=tuple(region_from_json(region) for region in value.get("regions", ())),
                boxes=tuple(Box(*box) for box in value.get("boxes", ())),
                dataset=value.get("dataset", ""),
                license=value.get("license", ""),
                split=value.get("split", "train"),
            )
        except KeyError as error:
            raise ValueError(f"record {value.get('id', '?')}: field {error} is missing") from error
        except TypeError as error:
            raise ValueError(f"record {value.get('id', '?')}: {error}") from error


def region_to_json(region: Region) -> dict[str, Any]:
    """A region as an object of one key, its type."""
    match region:
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


def region_from_json(value: dict[str, Any]) -> Region:
    """Inverse of `region_to_json`. Raises `ValueError` for an unknown type or malformed numbers."""
    match value:
        case {"point": [x, y]}:
            return Point(x, y)
        case {"box": [x1, y1, x2, y2]}:
            return Box(x1, y1, x2, y2)
        case {"polygon": points}:
            return Polygon(points)
        case {"scribble": points, **rest}:
            return Scribble(points, rest.get("width", BRUSH_WIDTH))
        case {"mask": rle}:
            return Mask.from_coco(rle)
    raise ValueError(f"region: expected one of point, box, polygon, scribble or mask with its coordinates, got {value}")
