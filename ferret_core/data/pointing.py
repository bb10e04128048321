"""Ways a person points at an object, drawn from the object's mask: what a model must understand."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from ferret_core.geometry import Box, ImageSize, Mask, Point, Polygon, Region, Scribble, mask_bounds

Gesture = Literal["point", "box", "scribble", "polygon", "mask"]
GESTURES: tuple[Gesture, ...] = ("point", "box", "scribble", "polygon", "mask")

_CORNERS = 12


def point_at(mask: np.ndarray, gesture: Gesture, rng: np.random.Generator) -> Region:
    """A region by which someone could mean the object `mask`, bool `(height, width)`, as a human hand would draw it."""
    size = ImageSize(mask.shape[1], mask.shape[0])
    if gesture == "mask":
        return Mask.from_array(mask)
    if gesture == "box":
        return _loose_box(mask, size, rng)
    if gesture == "polygon":
        return _outline(mask, size)
    y, x = np.nonzero(mask)
    if gesture == "point":
        # People aim at the middle: the most central of a few random pixels.
        some = rng.integers(len(x), size=3)
        best = some[np.hypot(x[some] - x.mean(), y[some] - y.mean()).argmin()]
        return Point(float(x[best]) + 0.5, float(y[best]) + 0.5)
    # A stroke along the object's longer side.
    along = x if np.ptp(x) > np.ptp(y) else y
    stops = rng.integers(len(x), size=rng.integers(3, 7))
    stops = stops[np.argsort(along[stops])]
    width = rng.uniform(0.06, 0.15) * math.sqrt(len(x))
    return Scribble(tuple((float(x[i]) + 0.5, float(y[i]) + 0.5) for i in stops), max(3.0, round(width, 1)))


def _loose_box(mask: np.ndarray, size: ImageSize, rng: np.random.Generator) -> Box:
    """The bounding box, each side off by up to 4 % of its length."""
    x1, y1, x2, y2 = mask_bounds(mask)
    wobble = rng.uniform(-0.04, 0.04, 4) * np.array([x2 - x1, y2 - y1] * 2)
    return Box(*(round(float(v), 1) for v in np.array([x1, y1, x2, y2]) + wobble)).clamp(size)


def _outline(mask: np.ndarray, size: ImageSize) -> Region:
    """The object's farthest pixel in each of a dozen directions around its middle."""
    y, x = np.nonzero(mask)
    cx, cy = x.mean(), y.mean()
    sector = ((np.arctan2(y - cy, x - cx) + math.pi) / (2 * math.pi) * _CORNERS).astype(int) % _CORNERS
    distance = np.hypot(x - cx, y - cy)
    corners = []
    for i in range(_CORNERS):
        members = np.flatnonzero(sector == i)
        if len(members):
            far = members[distance[members].argmax()]
            corners.append((float(x[far]), float(y[far])))
    return Polygon(tuple(corners)) if len(corners) >= 3 else Box(*mask_bounds(mask)).clamp(size)
