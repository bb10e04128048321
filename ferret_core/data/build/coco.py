"""COCO (`instances_train2017.json`, `captions_train2017.json`), and the layout that other data sets took from it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ferret_core.data.build.reading import Request, check_items
from ferret_core.data.build.scene import Scene, SceneObject, box_from, clean, clean_name, coco_id_of, size_from
from ferret_core.geometry import ImageSize

SPLITS = {"train": "train2017", "validation": "val2017"}


class CocoFile:
    """Images, categories and annotations of a file in COCO's layout. A caption file has no categories."""

    def __init__(self, request: Request, *names: str) -> None:
        self.problems = request.problems
        self.path, data = request.load(*names)
        if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
            raise ValueError(f"{self.path}: must be an object with images and annotations, as COCO's files are")
        self.categories: dict[int, str] = {each["id"]: clean_name(each["name"]) for each in data.get("categories", ())}
        self.images: dict[int, dict] = {}
        for image in check_items(self.path, data["images"], self.problems, "images"):
            with self.problems.at(f"{self.path}: image {image.get('id')}"):
                self.images[image["id"]] = image
        self.annotations: dict[int, list[dict]] = {}
        for annotation in check_items(self.path, data["annotations"], self.problems, "annotations"):
            with self.problems.at(f"{self.path}: annotation {annotation.get('id')}"):
                if annotation["image_id"] not in self.images:
                    raise ValueError(f"image_id {annotation['image_id']} is not among the images")
                self.annotations.setdefault(annotation["image_id"], []).append(annotation)

    def scenes(self, **common: Any) -> Iterator[tuple[Scene, dict[int, int], dict]]:
        """Every image as a scene with its objects; the index of each annotation's object; and the image's own entry.

        Of a crowd, of what is broken and left out, and of what `not_exhaustive_category_ids` names, more may be there.
        """
        for number, image in self.images.items():
            with self.problems.at(f"{self.path}: image {number}"):
                size = size_from(image["width"], image["height"])
                name = image_path(image)
                objects, index, partial = self._objects(number, size)
                partial |= {self.categories[each] for each in image.get("not_exhaustive_category_ids", ())}
                scene = Scene(
                    id=str(number), image=name, size=size, coco_id=coco_id_of(name), objects=tuple(objects),
                    partial=frozenset(partial), **common,
                )  # fmt: skip
                yield scene, index, image

    def _objects(self, image: int, size: ImageSize) -> tuple[list[SceneObject], dict[int, int], set[str]]:
        objects: list[SceneObject] = []
        index: dict[int, int] = {}
        partial: set[str] = set()
        for annotation in self.annotations.get(image, ()):
            name = self.categories.get(annotation.get("category_id", 0), "")
            with self.problems.at(f"{self.path}: annotation {annotation.get('id')}"):
                if not name:
                    raise ValueError(f"category_id {annotation['category_id']} is not among the categories")
                box = box_from(annotation["bbox"], size)
                if not annotation.get("iscrowd"):
                    index[annotation["id"]] = len(objects)
                    objects.append(SceneObject(box=box, name=name, segmentation=annotation.get("segmentation")))
                    continue
            partial.add(name)
        return objects, index, partial


def image_path(image: Mapping[str, Any]) -> str:
    """Where the archives put an image: `train2017/000000000139.jpg`, `train2014/COCO_train2014_….jpg`, `patch8/….jpg`."""
    name = image.get("file_name", "")
    if match := re.fullmatch(r"COCO_(\w+)_\d{12}\.\w+", name):
        return f"{match[1]}/{name}"
    url = image.get("coco_url", "")
    path = "/".join((url if Path(url).suffix else name).split("/")[-2:])
    if not path:
        raise ValueError("has neither file_name nor coco_url")
    return path


def read_coco(request: Request) -> Iterator[Scene]:
    """Scenes of COCO, with five captions each where there are any. All 80 classes are annotated wherever they are."""
    split = SPLITS[request.split]
    instances = CocoFile(request, f"instances_{split}.json")
    captions: dict[int, list[str]] = {}
    if request.find(f"captions_{split}.json"):
        file = CocoFile(request, f"captions_{split}.json")
        for number, annotations in file.annotations.items():
            for each in annotations:
                with request.problems.at(f"{file.path}: annotation {each.get('id')}"):
                    captions.setdefault(number, []).append(clean(each["caption"]))
    checked = tuple(instances.categories.values())
    for scene, _, image in instances.scenes(checked=checked):
        yield replace(scene, captions=tuple(captions.get(image["id"], ())))
