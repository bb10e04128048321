"""Pictures to try, each with regions and questions: a directory with an `examples.json`.

[{"picture": "waffle.webp", "title": "Point", "regions": [{"number": 0, "kind": "point", "points": [[295, 255]]}],
  "questions": ["What is [region0]?"], "answers": ["It is a waffle."]}, ...]

`answers` may be left out: they are what the bundled checkpoint says, and only tests read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ferret_core.geometry import Region
from ui.pictures import Picture
from ui.regions import regions_from_json
from ui.settings import UISettings


@dataclass(frozen=True, slots=True)
class Example:
    """A picture, what is pointed at in it, and what can be asked."""

    title: str
    picture: Picture
    regions: Mapping[int, Region]
    questions: tuple[str, ...]


def load_examples(settings: UISettings) -> list[Example]:
    """At least one, of `settings.examples`. Raises `ValueError` if they are not as described above, `OSError` if not there."""
    index = settings.examples / "examples.json"
    try:
        examples = [_example(entry, index.parent, settings) for entry in json.loads(index.read_text())]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index}: {type(error).__name__}: {error}") from error
    if not examples:
        raise ValueError(f"{index}: needs at least one example")
    return examples


def _example(entry: Mapping, directory: Path, settings: UISettings) -> Example:
    data = (directory / entry["picture"]).read_bytes()
    picture = Picture.open(entry["title"], data, settings.max_image_bytes, settings.max_image_side)
    regions = regions_from_json(entry.get("regions", []), picture.size, settings.max_regions)
    if len(regions) != len(entry.get("regions", [])):
        raise ValueError(f"a region of {entry['picture']} is malformed")
    return Example(entry["title"], picture, regions, tuple(entry["questions"]))
