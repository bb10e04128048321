"""Objects365 v2 (`zhiyuan_objv2_train.json`): COCO's layout, 365 classes, all annotated wherever they are."""

from __future__ import annotations

from collections.abc import Iterator

from ferret_core.data.build.coco import CocoFile
from ferret_core.data.build.reading import Request
from ferret_core.data.build.scene import Scene

SPLITS = {"train": "train", "validation": "val"}


def read_objects365(request: Request) -> Iterator[Scene]:
    """Scenes of Objects365. "Other Shoes" are shoes, but where there are none there may still be shoes."""
    file = CocoFile(request, f"zhiyuan_objv2_{SPLITS[request.split]}.json")
    rest = {name for name in file.categories.values() if name.startswith("other ")}
    file.categories = {number: name.removeprefix("other ") for number, name in file.categories.items()}
    checked = tuple(name for name in file.categories.values() if f"other {name}" not in rest)
    for scene, _, _ in file.scenes(checked=checked):
        yield scene
