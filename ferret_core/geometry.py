"""Regions, boxes and masks, in pixels of the image.

The one place that turns a pointing gesture into pixels and converts between coordinate spaces:

* **image pixels**: floats (x, y), origin top-left, 0 <= x <= width, 0 <= y <= height, EXIF rotation already applied.
  Pixel (i, j) covers x in [i, i+1), y in [j, j+1).
* **text bins**: the integers 0..1000 that the model reads and writes, `int(1000 * v / size)` (paper section 3.1).
* **masks**: boolean arrays `(height, width)`; as text, COCO's compressed run-length encoding (column-major).

Every region type answers two questions: `to_mask(size)`, the pixels it covers, and `coordinates(size)`, the numbers
that describe it in a prompt. `to_mask` raises `RegionError` (a `ValueError`) when the region does not fit the image.
"""

from __future__ import annotations

import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

BINS = 1000
POINT_RADIUS = 5  # a point stands for the 11 x 11 window around it
BRUSH_WIDTH = 10.0  # of a scribble that does not say
MAX_POINTS = 4096  # of a polygon or a scribble, and ...
MAX_RUNS = 1_000_000  # ... runs of a mask, and ...
MAX_BRUSHED = 4e9  # ... square pixels that a brush passes over: drawing takes time that a client could waste

Coordinates = tuple[float, ...]
Vertices = tuple[tuple[float, float], ...]


class RegionError(ValueError):
    """A region that is malformed, empty, or outside its image. The message names the field and the limit."""


class ImageSize(NamedTuple):
    """Size of an image in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


class _Region(ABC):
    """What all regions have in common."""

    __slots__ = ()

    def _convert(self, to: Callable[[Any], Any], *names: str) -> None:
        """Fields, whatever sequences or numbers they came in, as `to` makes them."""
        for name in names:
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, to(value))
            except (TypeError, ValueError, OverflowError) as error:
                raise RegionError(f"{self.kind}: {name} = {reprlib.repr(value)}: {error}") from error

    @property
    def kind(self) -> str:
        """ "point", "box", "polygon", "scribble" or "mask"."""
        return type(self).__name__.lower()

    @abstractmethod
    def to_mask(self, size: ImageSize) -> np.ndarray:
        """The covered pixels, bool `(height, width)`. Raises `RegionError`: outside the image, malformed, or empty."""

    def coordinates(self, size: ImageSize) -> Coordinates:
        """Bounding box `(x1, y1, x2, y2)` of the covered pixels, in image pixels. Raises `RegionError` as `to_mask`;
        points and boxes, which are their own coordinates, are not checked."""
        return _bounds(self, size)

    def _check_inside(self, values: Iterable[tuple[str, float]], size: ImageSize) -> None:
        """Values by their name, x and y in turn."""
        for i, (name, value) in enumerate(values):
            limit = size[i % 2]
            if not (math.isfinite(value) and 0 <= value <= limit):
                raise RegionError(f"{self.kind}: {name} = {value:.10g} is outside the image ({size}): must be in [0, {limit}]")

    def _check_points(self, points: Vertices, size: ImageSize) -> None:
        if len(points) > MAX_POINTS:
            raise RegionError(f"{self.kind}: at most {MAX_POINTS:,} points, got {len(points):,}; simplify the outline")
        self._check_inside(
            ((f"points[{i}].{axis}", value) for i, point in enumerate(points) for axis, value in zip("xy", point, strict=True)),
            size,
        )

    def _check_not_empty(self, mask: np.ndarray) -> np.ndarray:
        if not mask.any():
            raise RegionError(f"{self.kind}: covers no pixel of the image")
        return mask


@dataclass(frozen=True, slots=True)
class Point(_Region):
    """One place. Covers the 11 x 11 window around its pixel, clipped to the image."""

    x: float
    y: float

    def __post_init__(self) -> None:
        self._convert(float, "x", "y")

    def to_mask(self, size: ImageSize) -> np.ndarray:
        self._check_inside([("x", self.x), ("y", self.y)], size)
        x, y = int(self.x), int(self.y)
        return _window(x - POINT_RADIUS, y - POINT_RADIUS, x + POINT_RADIUS, y + POINT_RADIUS, size)

    def coordinates(self, size: ImageSize) -> Coordinates:
        """`(x, y)` in image pixels."""
        return self.x, self.y


@dataclass(frozen=True, slots=True)
class Box(_Region):
    """An axis-aligned rectangle. Covers the pixels from (x1, y1) to (x2, y2), both included."""

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        self._convert(float, "x1", "y1", "x2", "y2")

    def to_mask(self, size: ImageSize) -> np.ndarray:
        self._check_inside([("x1", self.x1), ("y1", self.y1), ("x2", self.x2), ("y2", self.y2)], size)
        if self.x2 < self.x1 or self.y2 < self.y1:
            raise RegionError(f"box: x2 must not be smaller than x1, nor y2 than y1; got {self.coordinates(size)}")
        mask = _window(int(self.x1), int(self.y1), int(self.x2), int(self.y2), size)
        return self._check_not_empty(mask)

    def coordinates(self, size: ImageSize) -> Coordinates:
        """`(x1, y1, x2, y2)` in image pixels."""
        return self.x1, self.y1, self.x2, self.y2

    @property
    def area(self) -> float:
        """Area in square pixels; 0 for a reversed box."""
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    def clamp(self, size: ImageSize) -> Box:
        """The same box with every coordinate pushed into the image."""
        return Box(
            min(max(self.x1, 0), size.width),
            min(max(self.y1, 0), size.height),
            min(max(self.x2, 0), size.width),
            min(max(self.y2, 0), size.height),
        )


@dataclass(frozen=True, slots=True)
class Polygon(_Region):
    """A closed outline of at least three vertices; covers its inside and its border."""

    points: Vertices

    def __post_init__(self) -> None:
        self._convert(_vertices, "points")

    def to_mask(self, size: ImageSize) -> np.ndarray:
        if len(self.points) < 3:
            raise RegionError(f"polygon: needs at least 3 points, got {len(self.points)}")
        self._check_points(self.points, size)
        canvas = Image.new("1", size)
        ImageDraw.Draw(canvas).polygon(_clip_to_pixels(self.points, size), fill=1, outline=1)
        return self._check_not_empty(np.array(canvas))


@dataclass(frozen=True, slots=True)
class Scribble(_Region):
    """A stroke: the polyline through `points`, drawn with a round brush of `width` pixels."""

    points: Vertices
    width: float = BRUSH_WIDTH

    def __post_init__(self) -> None:
        self._convert(_vertices, "points")
        self._convert(float, "width")

    def to_mask(self, size: ImageSize) -> np.ndarray:
        if not self.points:
            raise RegionError("scribble: needs at least 1 point, got 0")
        longest = max(*size, BRUSH_WIDTH)
        if not 0 < self.width <= longest:  # nor NaN
            raise RegionError(f"scribble: width must be in (0, {longest}] pixels, got {self.width}")
        self._check_points(self.points, size)
        if len(self.points) * self.width**2 > MAX_BRUSHED:
            raise RegionError(f"scribble: {len(self.points):,} points are too many for a brush of {self.width:.10g} pixels")
        canvas = Image.new("1", size)
        draw = ImageDraw.Draw(canvas)
        path = _clip_to_pixels(self.points, size)
        radius = self.width / 2
        draw.line(path, fill=1, width=max(1, round(self.width)))
        for x, y in path:  # round joints and ends
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
        draw.point(path, fill=1)
        return self._check_not_empty(np.array(canvas))


@dataclass(frozen=True, slots=True)
class Mask(_Region):
    """Any set of pixels of an image of size `size`, as COCO's compressed RLE `counts`."""

    size: ImageSize
    counts: str = field(repr=False)

    def __post_init__(self) -> None:
        self._convert(lambda size: ImageSize(*map(int, size)), "size")
        if not isinstance(self.counts, str):
            raise RegionError("mask: counts must be text")

    @classmethod
    def from_array(cls, mask: np.ndarray) -> Mask:
        """From a `(height, width)` array; every non-zero pixel is covered."""
        mask = np.asarray(mask)
        if mask.ndim != 2:
            raise RegionError(f"mask: needs a (height, width) array, got shape {mask.shape}")
        return cls(ImageSize(mask.shape[1], mask.shape[0]), rle_encode(mask))

    @classmethod
    def from_coco(cls, rle: dict) -> Mask:
        """From COCO's `{"size": [height, width], "counts": ...}`; counts compressed (str, bytes) or a list of runs."""
        try:
            (height, width), counts = rle["size"], rle["counts"]
        except (KeyError, TypeError, ValueError) as error:
            raise RegionError("mask: a COCO RLE has the fields size [height, width] and counts") from error
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        if not isinstance(counts, str):
            if not isinstance(counts, Sequence) or not all(isinstance(run, int) for run in counts):
                raise RegionError("mask: counts must be text or a list of integers")
            counts = _compress_runs(list(counts))
        return cls(ImageSize(width, height), counts)

    def to_coco(self) -> dict:
        """COCO's `{"size": [height, width], "counts": str}`."""
        return {"size": [self.size.height, self.size.width], "counts": self.counts}

    def to_mask(self, size: ImageSize) -> np.ndarray:
        if self.size != size:
            raise RegionError(f"mask: its size {self.size} is not the image's, {size}")
        return self._check_not_empty(rle_decode(self.counts, self.size))


Region = Point | Box | Polygon | Scribble | Mask


# ---- coordinate spaces -----------------------------------------------------------------------------------------------


def to_bins(coordinates: Coordinates, size: ImageSize) -> tuple[int, ...]:
    """Image pixels to text bins: `int(1000 * v / size)` for x and y in turn (paper section 3.1)."""
    return tuple(int(BINS * value / size[i % 2]) for i, value in enumerate(coordinates))


def from_bins(bins: tuple[int, ...], size: ImageSize) -> Coordinates:
    """Text bins to image pixels: `int(v * size / 1000)`, as the published system reads its answers."""
    return tuple(float(int(value * size[i % 2] / BINS)) for i, value in enumerate(bins))


# ---- masks -----------------------------------------------------------------------------------------------------------


def mask_bounds(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Bounding box `(x1, y1, x2, y2)` of the covered pixels, both ends included, of a non-empty `(H, W)` mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    inter = Box(max(a.x1, b.x1), max(a.y1, b.y1), min(a.x2, b.x2), min(a.y2, b.y2)).area
    union = a.area + b.area - inter
    return inter / union if union > 0 else 0.0


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean `(H, W)` masks, in [0, 1]."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def rle_encode(mask: np.ndarray) -> str:
    """COCO's compressed RLE of a `(height, width)` mask: runs down the columns, zeros first, 6 bits a character."""
    flat = np.concatenate(([0], np.asarray(mask, dtype=bool).ravel(order="F").astype(np.int8), [0]))
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate(([0], edges, [mask.size])))
    if runs[-1] == 0 and len(runs) > 1:
        runs = runs[:-1]
    return _compress_runs(runs.tolist())


def rle_decode(counts: str, size: ImageSize) -> np.ndarray:
    """Inverse of `rle_encode`: a bool `(height, width)` array. Raises `RegionError` if the runs do not fill the image."""
    runs = _expand_runs(counts)
    area = size.width * size.height
    if min(runs, default=0) < 0 or sum(runs) != area:
        raise RegionError(f"mask: counts cover {sum(runs)} pixels, but {size} needs {area}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size.width, size.height).T


def _compress_runs(runs: list[int]) -> str:
    """Each run (from the fourth, its difference to the run two before) in base 32, little end first, offset by 48."""
    text = bytearray()
    for i, run in enumerate(runs):
        value = run - (runs[i - 2] if i > 2 else 0)
        while True:
            digit, value = value & 31, value >> 5
            done = value == (-1 if digit & 16 else 0)
            text.append(48 + (digit if done else digit | 32))
            if done:
                break
    return text.decode("ascii")


def _expand_runs(counts: str) -> list[int]:
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 40:
            raise RegionError(f"mask: counts holds {character!r}, which is not COCO's compressed RLE")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            if len(runs) > MAX_RUNS:
                raise RegionError(f"mask: at most {MAX_RUNS:,} runs")
            value, shift = 0, 0
    if shift:
        raise RegionError("mask: counts ends in the middle of a run")
    return runs


# ---- rasterising -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=128)  # a conversation asks for the same again and again
def _bounds(region: _Region, size: ImageSize) -> Coordinates:
    return mask_bounds(region.to_mask(size))


def _vertices(points: Iterable[Iterable[float]]) -> Vertices:
    return tuple((float(x), float(y)) for x, y in points)


def _window(x1: int, y1: int, x2: int, y2: int, size: ImageSize) -> np.ndarray:
    """Pixels of the rectangle with both corners included, clipped to the image."""
    mask = np.zeros((size.height, size.width), dtype=bool)
    mask[max(y1, 0) : y2 + 1, max(x1, 0) : x2 + 1] = True
    return mask


def _clip_to_pixels(points: Vertices, size: ImageSize) -> list[tuple[float, float]]:
    """A vertex on the right or bottom border belongs to the last pixel."""
    return [(min(x, size.width - 1), min(y, size.height - 1)) for x, y in points]
