"""The training files of the original release, as records.

    for record in try_original("git_instruction.json", Images("coco/train2017")):
        ...                                     # a record, or the error that stands in its place

Such a file is one JSON list. The turns of an entry, `conversations`, alternate between `human` and `gpt`; the N-th of
`box_x1y1x2y2[turn]`, in pixels of the image, stands in a turn's text as `<bbox_locationN>`, and may have a COCO RLE in
`masks[turn]`. What a human mentions becomes an `Object` to point at, what the answer mentions a `[boxN]`. As the original
reads them:

* boxes are pushed into the image, to pixels 0 to width - 1 and 0 to height - 1;
* an answer without a question before it is left out;
* the image comes before the first question, wherever `<image>` stands.

An entry without `image` is about text alone: its record has `image=""` and size 0 x 0.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from ferret_core import s3
from ferret_core.data.images import Images
from ferret_core.data.records import Object, Record
from ferret_core.geometry import Box, ImageSize, Mask
from ferret_core.prompt import IMAGE_TOKEN, Turn, mentioned_boxes, mentioned_regions

_LOCATION = re.compile(r"<bbox_location(\d+)>")
_LYING = range(5, 9)  # EXIF orientations that exchange width and height


def try_original(path: str | Path, images: Images | None = None) -> Iterator[Record | ValueError]:
    """The records of a file, in order; an entry that cannot be read is its error, and the next one follows.

    `files.read_records`, which takes such a file as well, raises the first one.

    Args:
        path: the JSON file.
        images: where its pictures lie, for entries without `image_w` and `image_h`; by default beside the file.

    Raises:
        ValueError: not such a file. As one that is yielded, it names file, entry (from 1), id and reason.
    """
    path = Path(path)
    images = images or Images(path.parent)
    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: must be a list of entries with `conversations`, got {type(entries).__name__}")
    for number, entry in enumerate(entries, 1):
        try:
            yield _read_entry(entry, path.stem, images)
        except (ValueError, TypeError, KeyError) as error:
            name = f" ({entry['id']})" if isinstance(entry, dict) and "id" in entry else ""
            reason = f"field {error} is missing" if isinstance(error, KeyError) else error
            yield ValueError(f"{path}: entry {number}{name}: {reason}")


def _read_entry(entry: dict[str, Any], dataset: str, images: Images) -> Record:
    if not isinstance(entry, dict):
        raise ValueError(f"must be an object with `conversations`, got {type(entry).__name__}")
    size = _read_size(entry, images)
    regions: list[Object] = []
    boxes: list[Box] = []
    texts: list[str] = []
    for i, message in enumerate(entry["conversations"]):
        if not isinstance(message, dict) or not isinstance(message.get("value", ""), str):
            raise ValueError(f"conversations[{i}]: must be {{'from': 'human' or 'gpt', 'value': text}}, got {message!r}")
        role = ("human", "gpt")[len(texts) % 2]
        if i == 0 and message["from"] == "gpt":
            continue
        if message["from"] != role:
            raise ValueError(f"conversations[{i}].from: must be {role!r}, turn about, got {message['from']!r}")
        text = message["value"]
        if mentioned_regions(text) or mentioned_boxes(text):
            raise ValueError(f"conversations[{i}].value: [regionN] and [boxN] are reserved; write <bbox_locationN>")
        numbers = list(dict.fromkeys(map(int, _LOCATION.findall(text))))
        found = [_read_box(entry, i, number, size) for number in numbers]
        if role == "human":
            name, first = "region", len(regions)
            regions += [Object(box, _read_mask(entry, i, number, size)) for number, box in zip(numbers, found, strict=True)]
            if IMAGE_TOKEN in text:
                text = text.replace(IMAGE_TOKEN, "").strip()
        else:
            name, first = "box", len(boxes)
            boxes += found
        for place, number in enumerate(numbers, first):
            text = text.replace(f"<bbox_location{number}>", f"[{name}{place}]")
        texts.append(text)
    if not texts:
        raise ValueError("conversations: has no question")
    if len(texts) % 2:
        raise ValueError("conversations: the last question has no answer")
    if not all(text.strip() for text in texts[::2]):
        raise ValueError("conversations: a question is empty")
    return Record(
        id=str(entry["id"]),
        image=entry.get("image") or "",
        size=size,
        turns=tuple(map(Turn, texts[::2], texts[1::2])),
        regions=tuple(regions),
        boxes=tuple(boxes),
        dataset=dataset,
    )


def _read_size(entry: dict[str, Any], images: Images) -> ImageSize:
    if not entry.get("image"):
        return ImageSize(0, 0)
    if entry.get("image_w") and entry.get("image_h"):
        return ImageSize(int(entry["image_w"]), int(entry["image_h"]))
    place = images.locate(entry["image"])
    try:
        with Image.open(io.BytesIO(s3.read_object(place)) if s3.is_url(place) else place) as image:
            width, height = image.size
            lying = image.getexif().get(ExifTags.Base.Orientation) in _LYING
            return ImageSize(height, width) if lying else ImageSize(width, height)
    except FileNotFoundError as error:
        raise ValueError(f"image: {place} is missing; without image_w and image_h its size is read from it") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"image: {place} is not a picture") from error


def _read_box(entry: dict[str, Any], turn: int, number: int, size: ImageSize) -> Box:
    name = f"box_x1y1x2y2[{turn}]"
    boxes = _of_turn(entry, "box_x1y1x2y2", turn)
    if number >= len(boxes):
        raise ValueError(f"conversations[{turn}]: <bbox_location{number}> is not among the {len(boxes)} boxes of {name}")
    if size == (0, 0):
        raise ValueError(f"{name}: boxes need an image")
    if not isinstance(boxes[number], list) or len(boxes[number]) != 4:
        raise ValueError(f"{name}[{number}]: must be [x1, y1, x2, y2], got {boxes[number]!r}")
    x1, y1, x2, y2 = Box(*boxes[number]).coordinates(size)
    box = Box(max(x1, 0), max(y1, 0), min(x2, size.width - 1), min(y2, size.height - 1))
    if not (box.x1 <= box.x2 and box.y1 <= box.y2):  # nor NaN
        raise ValueError(f"{name}[{number}]: {boxes[number]} is reversed or outside the image ({size})")
    return box


def _read_mask(entry: dict[str, Any], turn: int, number: int, size: ImageSize) -> Mask | None:
    masks = _of_turn(entry, "masks", turn)
    if number >= len(masks) or not masks[number]:
        return None
    mask = Mask.from_coco(masks[number])
    if mask.size != size:
        raise ValueError(f"masks[{turn}][{number}]: its size {mask.size} is not the image's, {size}")
    return mask


def _of_turn(entry: dict[str, Any], field: str, turn: int) -> list[Any]:
    turns = entry.get(field) or []
    found = (turns[turn] if isinstance(turns, list) and turn < len(turns) else None) or []
    if not isinstance(turns, list) or not isinstance(found, list):
        raise ValueError(f"{field}: must be a list with a list for each turn")
    return found
