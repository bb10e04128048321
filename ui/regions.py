"""Regions as JSON, and back: what the canvas sends, which nobody vouches for, what it is sent, examples and exports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ferret_core.geometry import BRUSH_WIDTH, MAX_POINTS, Box, ImageSize, Point, Polygon, Region, Scribble

_FEWEST_POINTS = {"point": 1, "box": 2, "scribble": 1, "polygon": 3}


def regions_from_json(items: Any, size: ImageSize, limit: int) -> dict[int, Region]:
    """Regions by number, in pixels of the image, clamped to it. What is no region is left out."""
    regions = {}
    for item in items[:limit] if isinstance(items, list) else []:
        try:
            number, kind = int(item["number"]), item["kind"]
            points = [(_clamp(x, 0, size.width), _clamp(y, 0, size.height)) for x, y in item["points"][:MAX_POINTS]]
            if number >= 0 and len(points) >= _FEWEST_POINTS[kind]:
                regions[number] = _region(kind, points, item.get("width") or BRUSH_WIDTH, size)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
    return regions


def regions_to_json(regions: Mapping[int, Region]) -> list[dict[str, Any]]:
    """What the canvas draws, in pixels of the image. Masks cannot be drawn on it and are left out."""
    return [{"number": number, **item} for number, region in regions.items() if (item := _item(region))]


def _region(kind: str, points: list[tuple[float, float]], width: Any, size: ImageSize) -> Region:
    match kind:
        case "point":
            return Point(*points[0])
        case "box":
            (x1, y1), (x2, y2) = points[:2]
            x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
            return Box(min(x1, size.width - 1), min(y1, size.height - 1), x2, y2)  # covers a pixel at least
        case "polygon":
            return Polygon(tuple(points))
        case "scribble":
            return Scribble(tuple(points), _clamp(width, 1, max(size)))
    raise ValueError(f"no kind of region: {kind}")


def _clamp(value: Any, low: float, high: float) -> float:
    value = float(value)
    if not math.isfinite(value):
        raise ValueError("not a number")
    return min(max(value, low), high)


def _item(region: Region) -> dict[str, Any] | None:
    match region:
        case Point(x, y):
            return {"kind": "point", "points": [(x, y)]}
        case Box(x1, y1, x2, y2):
            return {"kind": "box", "points": [(x1, y1), (x2, y2)]}
        case Polygon(points):
            return {"kind": "polygon", "points": points}
        case Scribble(points, width):
            return {"kind": "scribble", "points": points, "width": width}
    return None
