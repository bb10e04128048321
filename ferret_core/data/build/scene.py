"""What is known about one picture, whatever data set it comes from: the only thing that tasks see.

Texts of a scene speak of its objects by index, as records do: `[boxN]` after a phrase is where it is, and in what tasks
make of the scene `[regionN]` points at it. Boxes are in image pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ferret_core.data.build.words import may_be
from ferret_core.data.records import Object
from ferret_core.geometry import Box, ImageSize, Mask, Polygon, box_iou
from ferret_core.prompt import RESERVED, Turn, mentioned_boxes, mentioned_regions

MIN_SIDE = 6.0  # pixels: what is narrower is not pointed at, only counted
_SAME_BOX = 0.95  # of two objects of one name, from this IoU on, one is a double
_COCO_NAME = re.compile(r"(?:^|[_/])(\d{12})\.\w+$")
_MENTION = re.compile(r"\[(region|box)(\d+)\]")
_REPEATED = re.compile(r"(\[box\d+\])(?: \1)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """Something in the picture."""

    box: Box
    name: str = ""
    """What it is, in the singular as a rule; empty if it is only described."""
    attributes: tuple[str, ...] = ()
    segmentation: Any = None
    """As in COCO: polygons, or an RLE. Rasterised only if somebody points at the object."""

    @property
    def pointable(self) -> bool:
        """Large enough to be meant."""
        return min(self.box.x2 - self.box.x1, self.box.y2 - self.box.y1) >= MIN_SIDE


@dataclass(frozen=True, slots=True)
class Relation:
    """`subject` and `object` are indices of objects: the man (subject) riding (predicate) the horse (object)."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True, slots=True)
class Description:
    """Words for one object; `refers` if they fit nothing else in the picture."""

    text: str
    object: int
    refers: bool = False


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture and what its annotators say about it."""

    id: str
    """Of the picture in its data set."""
    image: str
    """Its path below the directory of pictures."""
    size: ImageSize
    coco_id: int | None = None
    """Of the same picture in COCO."""
    objects: tuple[SceneObject, ...] = ()
    relations: tuple[Relation, ...] = ()
    descriptions: tuple[Description, ...] = ()
    captions: tuple[str, ...] = ()
    dialogues: tuple[tuple[Turn, ...], ...] = ()
    checked: tuple[str, ...] = ()
    """Names that annotators looked for: what is neither in `objects` nor in `partial` is not in the picture."""
    partial: frozenset[str] = frozenset()
    """Names of which more may be in the picture than is among `objects`."""

    @cached_property
    def by_name(self) -> dict[str, list[int]]:
        """Indices of the objects of each name, from left to right."""
        found: dict[str, list[int]] = {}
        for i in sorted(range(len(self.objects)), key=lambda i: self.objects[i].box.coordinates(self.size)):
            if self.objects[i].name:
                found.setdefault(self.objects[i].name, []).append(i)
        return found

    def lacks(self, name: str) -> bool:
        """Whether it is known that nothing in the picture could be called so."""
        return name in self.checked and not any(may_be(there, name) for there in (*self.by_name, *self.partial))

    def all_of(self, name: str) -> list[int] | None:
        """Objects of this name if they are known to be all there are, else None."""
        return self.by_name.get(name) if name in self.checked and name not in self.partial else None

    def only(self, name: str) -> int | None:
        """The one object that can be called so, None if there are others or may be."""
        if name in self.partial or len(self.by_name[name]) > 1:
            return None
        return None if any(may_be(other, name) for other in self.by_name if other != name) else self.by_name[name][0]


def merge_doubles(scene: Scene) -> Scene:
    """The scene without objects that are there twice: same name, same place. What spoke of the second speaks of the first."""
    kept: list[SceneObject] = []
    index: dict[int, int] = {}
    for i, item in enumerate(scene.objects):
        same = (k for k, other in enumerate(kept) if other.name == item.name and box_iou(other.box, item.box) >= _SAME_BOX)
        index[i] = next(same, len(kept))
        if index[i] == len(kept):
            kept.append(item)
        else:
            first = kept[index[i]]
            attributes = tuple(dict.fromkeys((*first.attributes, *item.attributes)))
            kept[index[i]] = replace(first, attributes=attributes, segmentation=first.segmentation or item.segmentation)
    if len(kept) == len(scene.objects):
        return scene

    def moved(text: str) -> str:
        return _REPEATED.sub(r"\1", renumber(text, lambda kind, i: index[i]))

    relations = (Relation(index[each.subject], each.predicate, index[each.object]) for each in scene.relations)
    return replace(
        scene,
        objects=tuple(kept),
        relations=tuple(dict.fromkeys(each for each in relations if each.subject != each.object)),
        descriptions=tuple(dict.fromkeys(replace(each, object=index[each.object]) for each in scene.descriptions)),
        captions=tuple(map(moved, scene.captions)),
        dialogues=tuple(tuple(Turn(t.question, moved(t.answer or "")) for t in turns) for turns in scene.dialogues),
    )


def renumber(text: str, number: Callable[[str, int], int]) -> str:
    """`text` with every `[regionN]` and `[boxN]` as `[kind{number(kind, N)}]`."""
    return _MENTION.sub(lambda match: f"[{match[1]}{number(match[1], int(match[2]))}]", text)


def without_mentions(text: str) -> str:
    """The plain words."""
    return re.sub(rf" ?{_MENTION.pattern}", "", text)


def to_region(item: SceneObject, size: ImageSize) -> Object:
    """What a record points at. Raises `ValueError` for a segmentation that is none, or not of an image of `size`."""
    return Object(item.box, _to_mask(item.segmentation, size) if item.segmentation else None)


def _to_mask(segmentation: Any, size: ImageSize) -> Mask | None:
    if isinstance(segmentation, dict):
        mask = Mask.from_coco(segmentation)
        return mask if mask.to_mask(size).any() else None
    pixels = np.zeros((size.height, size.width), dtype=bool)
    for numbers in segmentation:
        if len(numbers) >= 6:  # a line has no inside
            clamped = [min(max(value, 0), size[i % 2]) for i, value in enumerate(numbers)]
            pixels |= Polygon(tuple(zip(clamped[::2], clamped[1::2], strict=True))).to_mask(size)
    return Mask.from_array(pixels) if pixels.any() else None


def box_from(bbox: Sequence[float], size: ImageSize) -> Box:
    """A box from `[x, y, width, height]`, clamped to the image. Raises `ValueError` if nothing of it is in the image."""
    x, y, width, height = bbox
    if not (width > 0 and height > 0):
        raise ValueError(f"box {bbox}: width and height must be positive")
    box = Box(x, y, x + width, y + height).clamp(size)
    if not box.area > 0:
        raise ValueError(f"box {bbox} lies outside the image ({size})")
    return box


def size_from(width: Any, height: Any) -> ImageSize:
    """Size of an image. Raises `ValueError` if it has none."""
    size = ImageSize(int(width), int(height))
    if min(size) < 1:
        raise ValueError(f"width and height must be positive, got {size}")
    return size


def clean(text: str) -> str:
    """Text of a data set, white space made single. Raises `ValueError` as `check_plain` does."""
    return check_plain(" ".join(str(text).split()))


def check_plain(text: str) -> str:
    """The text. Raises `ValueError` if it is empty, or holds what means something to the model."""
    if not text:
        raise ValueError("text is empty")
    if mentioned_regions(text) or mentioned_boxes(text) or any(token in text for token in RESERVED):
        raise ValueError(f"text holds a token of the prompt format: {text!r}")
    return text


def clean_name(name: str) -> str:
    """A class name as people say it: `Bow_(weapon)` is "bow", `Cabinet/shelf` "cabinet"."""
    return clean(re.sub(r"\(.*?\)", "", name).replace("_", " ").split("/")[0]).lower().strip(" .,")


def coco_id_of(image: str) -> int | None:
    """COCO's id of a picture by its file name, `000000000139.jpg` or `COCO_val2014_000000000139.jpg`."""
    match = _COCO_NAME.search(image)
    return int(match[1]) if match else None


def list_boxes(indices: Iterable[int]) -> str:
    """ "[box0] [box3]"."""
    return " ".join(f"[box{i}]" for i in indices)
