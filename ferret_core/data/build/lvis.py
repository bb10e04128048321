"""LVIS v1 (`lvis_v1_train.json`): COCO's pictures, 1,203 classes, each annotated in some pictures only.

`neg_category_ids` of an image are classes that are not in it; `not_exhaustive_category_ids` classes of which not every
instance is annotated; of the other 1,100 or so nothing is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ferret_core.data.build.coco import CocoFile
from ferret_core.data.build.reading import Request
from ferret_core.data.build.scene import Scene

SPLITS = {"train": "train", "validation": "val"}


def read_lvis(request: Request) -> Iterator[Scene]:
    """Scenes of LVIS; what was checked is what was found and the classes said to be absent."""
    file = CocoFile(request, f"lvis_v1_{SPLITS[request.split]}.json")
    homonyms = Counter(file.categories.values())
    for scene, _, image in file.scenes():
        with request.problems.at(f"{file.path}: image {scene.id}"):
            found = {each["category_id"] for each in file.annotations.get(image["id"], ())}
            known = [*sorted(found), *image["neg_category_ids"]]
            # Who looked for bows to shoot with did not look for bows of ribbon.
            names = Counter(file.categories[each] for each in known)
            halves = {name for name, count in names.items() if count < homonyms[name]}
            yield replace(scene, checked=tuple(names), partial=scene.partial | halves)
