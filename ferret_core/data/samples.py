"""Training samples: a record and its picture as what the model takes, made as the original made them.

    sample = build_sample(record, image, processor, config.data, random.Random("run 7, sample 42"))
    batch = pack([sample, ...])

An `Object` that a question points at is shown as a point or as a box: one throw for each question, for all its objects
(paper section 4.1). `DataConfig.points` says where a point lies:

| points     | with `use_masks`, in an object that has a mask               | without `use_masks`                           |
|------------|--------------------------------------------------------------|-----------------------------------------------|
| `center`   | of up to 1,000 random pixels of the mask the nearest to the  | the middle of the box                         |
|            | middle of the box                                            |                                               |
| `gaussian` | the pixel of the mask nearest to such a place in the box     | near the middle, sigma 0.15 of the box's side |
| `uniform`  | any pixel of the mask                                        | anywhere in the box                           |

With `use_masks`, an object that has no mask gets a gaussian point. Whatever `use_masks` says, a mask limits the region: that of
a point is its 11 x 11 window as far as it lies in the mask, or without one in the box; that of a box is the mask inside it, or
the box if there is nothing of the mask inside. Other regions of a record are gestures, and nothing is thrown.

Choices are made on the grid of 1000 x 1000, in floats, and in this order, from `rng` alone: seeded alike it repeats the
original's. In training, the original computes `int(1000 / size * v)`, which is not always `geometry.to_bins`.

Shapes: L tokens, I images (0 or 1 in a sample), S image side, R regions, P points of a region.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ferret_core.data.config import DataConfig
from ferret_core.data.records import Object, Record
from ferret_core.geometry import BINS, Box, Coordinates, ImageSize, Point, Region
from ferret_core.model import FerretProcessor
from ferret_core.model.modeling import IGNORE_INDEX
from ferret_core.model.region_encoder import sample_points
from ferret_core.prompt import (
    BOX_MENTION,
    EOS_TOKEN,
    REGION_MENTION,
    REGION_TOKEN,
    Turn,
    check_text,
    mentioned_regions,
    write_turns,
)

POINT_SIGMA = 0.15  # of the box's sides
MASK_PIXELS = 1000  # at most, among which one near the middle is looked for
_ANSWER = " ASSISTANT: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One conversation as tokens, with its picture and its regions."""

    input_ids: Tensor
    """int64 `(L,)`: N image tokens in the image's place."""
    labels: Tensor
    """int64 `(L,)`: what is to be said, and -100 for what is not learned."""
    pixel_values: Tensor
    """float32 `(I, 3, S, S)`."""
    region_points: Tensor
    """float32 `(R, P, 2)`: x / width and y / height of each region's points, one region for each `<region_fea>`."""


# ---- regions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlacedRecord:
    """The turns of a record as they are read, and what each of their `<region_fea>` stands for, in order."""

    turns: tuple[Turn, ...]
    regions: tuple[Region, ...]
    """The gestures, in image pixels."""
    masks: tuple[np.ndarray, ...]
    """What they cover, bool `(height, width)`."""


def place_regions(record: Record, data: DataConfig, rng: random.Random) -> PlacedRecord:
    """Decides how the objects of a record are shown, and writes all its coordinates into its texts.

    Raises `ValueError` naming the record and the field: a reserved word, an answer that is missing, or a region outside the
    image or without a pixel in it.
    """
    size = record.size
    turns, regions, masks = [], [], []
    boxes = [_to_grid(box.coordinates(size), size) for box in record.boxes]
    points: dict[Box, Coordinates] = {}  # on the grid, by the box of the object; over all turns
    for question, answer in _checked_turns(record):
        form = None  # of the objects of this turn
        places: dict[int, Coordinates] = {}  # on the grid, by the number of the region; in this turn
        for number in mentioned_regions(question + answer):
            region = record.regions[number]
            try:
                if isinstance(region, Object) and number not in places:
                    form = form or rng.choice(("point", "box"))
                    if data.keep_form and region.box in points:
                        places[number] = points[region.box]
                    elif form == "point":
                        places[number] = points[region.box] = _choose_point(region, size, data, rng)
                    else:
                        places[number] = _to_grid(region.box.coordinates(size), size)
                elif not isinstance(region, Object):
                    places[number] = _to_grid(region.coordinates(size), size)
                shown = _shown(region, places[number], size)
                regions.append(shown)
                masks.append(_cover(region, shown, size))
            except ValueError as error:
                raise ValueError(f"record {record.id}: regions[{number}]: {error}") from error
        if data.keep_form:
            boxes = [points.get(box, place) for box, place in zip(record.boxes, boxes, strict=True)]
        turns.append(Turn(_write(question, places, boxes), _write(answer, places, boxes)))
    return PlacedRecord(tuple(turns), tuple(regions), tuple(masks))


def _checked_turns(record: Record) -> list[tuple[str, str]]:
    """Questions and answers, after what can be said of a record before its regions are placed."""
    turns = []
    known = record.outlines
    for i, turn in enumerate(record.turns):
        if turn.answer is None:
            raise ValueError(f"record {record.id}: turns[{i}].answer is missing")
        try:
            check_text(turn.question, known, f"turns[{i}].question")
            check_text(turn.answer, known, f"turns[{i}].answer")
        except ValueError as error:
            raise ValueError(f"record {record.id}: {error}") from error
        turns.append((turn.question, turn.answer))
    if not turns:
        raise ValueError(f"record {record.id}: turns must not be empty")
    for i, box in enumerate(record.boxes):
        if box != box.clamp(record.size) or box.x2 < box.x1 or box.y2 < box.y1:
            place = box.coordinates(record.size)
            raise ValueError(f"record {record.id}: boxes[{i}] = {place} is reversed or outside the image ({record.size})")
    return turns


def _choose_point(target: Object, size: ImageSize, data: DataConfig, rng: random.Random) -> Coordinates:
    """A place on the grid that stands for an object."""
    mask = target.mask.to_mask(size) if target.mask and data.use_masks else None
    x1, y1, x2, y2 = target.box.coordinates(size)
    middle = (x1 + x2) / 2, (y1 + y2) / 2
    if data.points == "gaussian" or (data.use_masks and mask is None):
        low, high = _to_grid((x1, y1), size), _to_grid((x2, y2), size)
        place = tuple(
            min(max(rng.gauss(mean, POINT_SIGMA * (end - start)), start), end)
            for mean, start, end in zip(_to_grid(middle, size), low, high, strict=True)
        )
        return place if mask is None else _to_grid(_nearest(_pixels(mask), _from_grid(place, size)), size)
    if mask is None:
        return _to_grid((rng.uniform(x1, x2), rng.uniform(y1, y2)) if data.points == "uniform" else middle, size)
    pixels = _pixels(mask)
    if data.points == "uniform":
        return _to_grid(pixels[rng.choice(range(len(pixels)))].tolist(), size)
    chosen = pixels[rng.sample(range(len(pixels)), min(len(pixels), MASK_PIXELS))]
    return _to_grid(_nearest(chosen, middle), size)


def _pixels(mask: np.ndarray) -> np.ndarray:
    """x and y of the covered pixels, int64 `(K, 2)`, row by row."""
    return np.argwhere(mask)[:, ::-1]


def _nearest(pixels: np.ndarray, place: Coordinates) -> Coordinates:
    """The one of `pixels` `(K, 2)` nearest to a place, along the axes; the last of equals, as recorded."""
    distance = np.abs(pixels - np.array(place)).sum(1)
    return tuple(pixels[len(pixels) - 1 - distance[::-1].argmin()].tolist())


def _shown(region: Region | Object, place: Coordinates, size: ImageSize) -> Region:
    """The gesture, in pixels: an object's is its place on the grid brought back."""
    if not isinstance(region, Object):
        return region
    values = _from_grid(place, size)
    return Point(*values) if len(values) == 2 else Box(*values)


def _cover(region: Region | Object, shown: Region, size: ImageSize) -> np.ndarray:
    """The pixels, bool `(height, width)`, that a region embedding is made of."""
    if not isinstance(region, Object):
        return region.to_mask(size)
    inside = region.mask.to_mask(size) if region.mask else region.box.to_mask(size)
    if isinstance(shown, Box):
        box = region.box.to_mask(size)
        both = box & inside
        return both if both.any() else box
    both = shown.to_mask(size) & inside
    if not both.any():
        raise ValueError(
            f"object: its mask has no pixel near the point {shown.coordinates(size)} of its box "
            f"{region.box.coordinates(size)}; data.use_masks=true chooses points of the mask"
        )
    return both


def _to_grid(values: Sequence[float], size: ImageSize) -> Coordinates:
    return tuple(BINS / size[i % 2] * value for i, value in enumerate(values))


def _from_grid(values: Sequence[float], size: ImageSize) -> Coordinates:
    return tuple(value / (BINS / size[i % 2]) for i, value in enumerate(values))


def _write(text: str, regions: dict[int, Coordinates], boxes: Sequence[Coordinates]) -> str:
    """A text with coordinates, given on the grid, for its mentions of regions and boxes."""

    def digits(place: Coordinates) -> str:
        return f"[{', '.join(str(int(value)) for value in place)}]"

    text = REGION_MENTION.sub(lambda match: f"{digits(regions[int(match[1])])} {REGION_TOKEN}", text)
    return BOX_MENTION.sub(lambda match: digits(boxes[int(match[1])]), text)


# ---- tokens ----------------------------------------------------------------------------------------------------------


def build_sample(
    record: Record, image: Image.Image | None, processor: FerretProcessor, data: DataConfig, rng: random.Random
) -> Sample:
    """The training sample of a record.

    Args:
        record: what is said.
        image: its picture, of its size; None for a record without one.
        processor: of the model.
        data: how objects are shown, and how long a sample may be: what is longer loses its end, with the regions there.
        rng: all that is left to chance.

    Raises:
        ValueError: as `place_regions`; no image for a record that has one; or a limit that cuts the image off.
    """
    if record.image and image is None:
        raise ValueError(f"record {record.id}: needs its image, {record.image}")
    placed = place_regions(record, data, rng)
    ids, labels = tokenize(write_turns(placed.turns, image is not None), processor, data.max_length)
    if image is not None and not (ids == processor.image_token_id).any():
        raise ValueError(f"record {record.id}: data.max_length = {data.max_length} cuts off the image; it must be larger")
    regions = int((ids == processor.tokenizer.convert_tokens_to_ids(REGION_TOKEN)).sum())
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    points = [
        sample_points(mask, processor.sampler_points, generator, processor.repeat_points) for mask in placed.masks[:regions]
    ]
    side = processor.image_processor.size["height"]
    return Sample(
        input_ids=ids,
        labels=labels,
        pixel_values=torch.zeros(0, 3, side, side) if image is None else processor.pixel_values([image]),
        region_points=torch.stack(points) if points else torch.zeros(0, processor.sampler_points, 2),
    )


def tokenize(prompt: str, processor: FerretProcessor, max_length: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels, int64 `(L,)`, of the first `max_length` tokens of a prompt, in which an image counts as one.

    The image then takes its N positions; if it is not among the first tokens it is lost altogether. Answers and their `</s>`
    are learned. Each round is measured alone; if the lengths do not add up to the whole, nothing of the sample is learned:
    so it is with an answer that contains " ASSISTANT: ".
    """
    ids = torch.tensor(processor.token_ids(prompt))
    labels = torch.full_like(ids, IGNORE_INDEX)
    position = 1  # after BOS
    for turn in prompt.split(EOS_TOKEN):
        question, *answers = turn.split(_ANSWER)
        if len(answers) != 1:
            break
        start = position + len(processor.token_ids(question + _ANSWER.rstrip())) - 1
        position += len(processor.token_ids(turn))  # its BOS makes up for the `</s>` that the split has taken
        labels[start:position] = ids[start:position]
    is_image = ids == processor.image_token_id
    limit = max_length + (int(is_image.sum()) - 1 if is_image[:max_length].any() else 0)
    if position != len(ids) and position < limit:
        labels[:] = IGNORE_INDEX
    return ids[:limit], labels[:limit]


# ---- batches ---------------------------------------------------------------------------------------------------------


def pack(samples: Sequence[Sample]) -> dict[str, Any]:
    """Samples one after the other, without padding.

    Returns:
        `input_ids`, `labels` and `position_ids` int64 `(1, T)`, positions from 0 in each sample, its first label -100;
        `cu_seq_lens` int32 `(samples + 1,)`, where each begins, and the end; `max_length`, of the longest; and as of `pad`
        `pixel_values`, `region_points` and `region_image`.
    """
    lengths = [len(sample.input_ids) for sample in samples]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    labels = torch.cat([sample.labels for sample in samples])
    labels[starts[:-1]] = IGNORE_INDEX  # nothing in the sample foretells its first token
    return {
        "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
        "labels": labels[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens": starts.int(),
        "max_length": max(lengths),
        **_pictures(samples),
    }


def pad(samples: Sequence[Sample], pad_token_id: int = 0) -> dict[str, Tensor]:
    """Samples padded on the right, as the original collates them: the plain form that `pack` is measured against.

    Returns:
        `input_ids`, `labels` and `attention_mask` int64 `(B, L)`; `pixel_values` float32 `(I, 3, S, S)`; `region_points`
        float32 `(R, P, 2)` and `region_image` int64 `(R,)`, the number of each region's image.
    """
    ids = [sample.input_ids for sample in samples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "labels": pad_sequence([sample.labels for sample in samples], batch_first=True, padding_value=IGNORE_INDEX),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        **_pictures(samples),
    }


def _pictures(samples: Sequence[Sample]) -> dict[str, Tensor]:
    images = torch.tensor([len(sample.pixel_values) for sample in samples])
    regions = torch.tensor([len(sample.region_points) for sample in samples])
    return {
        "pixel_values": torch.cat([sample.pixel_values for sample in samples]),
        "region_points": torch.cat([sample.region_points for sample in samples]),
        "region_image": (images.cumsum(0) - 1).repeat_interleave(regions),
    }
