"""Pictures that must not be learned from, because something is evaluated on them.

An exclusion file is one of

* `.txt`: a file name a line, with or without suffix, or `coco:139` for a COCO id (Flickr30k's `test.txt` will do);
* `.jsonl`: records, as of an evaluation set;
* `.json` in COCO's layout: all of its images (`instances_val2017.json`, `lvis_v1_val.json`);
* RefCOCO's refs, `.p` or `.json`: the images of all splits but train.

A picture is recognised by its file name, and by its COCO id in all data sets whose pictures are COCO's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ferret_core.data.build.coco import image_path
from ferret_core.data.build.reading import load_json
from ferret_core.data.build.refcoco import load_refs
from ferret_core.data.build.scene import Scene, coco_id_of


@dataclass(frozen=True, slots=True)
class Exclusions:
    """Pictures by file name without suffix and by COCO id."""

    names: set[str] = field(default_factory=set)
    coco_ids: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Exclusions:
        """From exclusion files. Raises `ValueError` naming the file, and the line of a text, that is none."""
        found = cls()
        for path in paths:
            for picture in _pictures(path):
                found._add(picture)
        return found

    def has(self, scene: Scene) -> bool:
        """Whether the picture of the scene is excluded."""
        return _stem(scene.image) in self.names or (scene.coco_id is not None and scene.coco_id in self.coco_ids)

    def _add(self, picture: str | int) -> None:
        number = picture if isinstance(picture, int) else coco_id_of(picture)
        if number is not None:
            self.coco_ids.add(number)
        if isinstance(picture, str):
            self.names.add(_stem(picture))


def _pictures(path: Path) -> Iterator[str | int]:
    """File names, and COCO ids as numbers."""
    if path.suffix in (".txt", ".jsonl"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                try:
                    yield _picture(line.strip(), path.suffix)
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{path}: line {number}: must be {_EXPECTED[path.suffix]}, got {line[:80]!r}") from error
        return
    if path.suffix not in (".json", ".p"):
        raise ValueError(f"{path}: an exclusion file ends in .txt, .jsonl, .json or .p")
    data = load_json(path) if path.suffix == ".json" else load_refs(path)
    try:
        if isinstance(data, dict):
            yield from (image_path(image) for image in data["images"])
        else:
            for ref in data:
                if ref["split"] != "train":
                    yield ref["image_id"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: neither COCO's layout nor refs of RefCOCO: {error!r}") from error


_EXPECTED = {".txt": "a file name or coco:ID", ".jsonl": "a record with its image"}


def _picture(line: str, suffix: str) -> str | int:
    if suffix == ".jsonl":
        return str(json.loads(line)["image"])
    return int(line.removeprefix("coco:")) if line.startswith("coco:") else line


def _stem(name: str) -> str:
    return PurePosixPath(name).stem
