"""Visual Genome (`image_data.json`, `objects.json`, `relationships.json`, `region_descriptions.json`, `attributes.json`).

Annotators named what they saw, not all there is: nothing is known to be absent, and no count is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ferret_core.data.build.reading import Request
from ferret_core.data.build.scene import (
    Description,
    Relation,
    Scene,
    SceneObject,
    box_from,
    clean,
    clean_name,
    size_from,
)
from ferret_core.geometry import ImageSize


def read_visual_genome(request: Request) -> Iterator[Scene]:
    """Scenes of Visual Genome. `objects.json` and `image_data.json` are needed, the others read where they are."""
    objects = _by_image(request, "objects.json", "objects")
    relations = _by_image(request, "relationships.json", "relationships")
    regions = _by_image(request, "region_descriptions.json", "regions")
    attributes = {
        each.get("object_id"): each.get("attributes") or ()
        for group in _by_image(request, "attributes.json", "attributes").values()
        for each in group
    }
    for image in request.items("image_data.json"):
        place = f"{request.root}: image {image.get('image_id')}"
        with request.problems.at(place):
            number = image["image_id"]
            reader = _Reader(request, place, size_from(image["width"], image["height"]), attributes)
            for each in objects.get(number, ()):
                reader.add_object(each)
            for each in relations.get(number, ()):
                reader.add_relation(each)
            for each in regions.get(number, ()):
                reader.add_region(each)
            yield Scene(
                id=str(number),
                image="/".join(image["url"].split("/")[-2:]),
                size=reader.size,
                coco_id=image.get("coco_id"),
                objects=tuple(reader.objects),
                relations=tuple(dict.fromkeys(reader.relations)),
                descriptions=tuple(reader.descriptions),
            )


def _by_image(request: Request, name: str, key: str) -> dict[int, list[dict]]:
    if name != "objects.json" and not request.find(name):
        return {}
    groups: dict[int, list[dict]] = {}
    for item in request.items(name):
        with request.problems.at(f"{request.root / name}: image {item.get('image_id', item.get('id'))}"):
            groups[item["image_id"] if "image_id" in item else item["id"]] = item[key]
    return groups


class _Reader:
    """Objects, relations and regions of one image."""

    def __init__(self, request: Request, place: str, size: ImageSize, attributes: dict[Any, Any]) -> None:
        self.problems, self.place, self.size, self.attributes = request.problems, place, size, attributes
        self.objects: list[SceneObject] = []
        self.relations: list[Relation] = []
        self.descriptions: list[Description] = []
        self._index: dict[int, int] = {}

    def add_object(self, value: dict) -> int | None:
        """Index of the object; relations bring some that `objects.json` lacks."""
        number = value.get("object_id", -1)
        if number not in self._index:
            with self.problems.at(f"{self.place}: object {number}"):
                box = box_from([value[key] for key in "xywh"], self.size)
                name = clean_name(value["names"][0] if "names" in value else value["name"])
                attributes = tuple(clean(each).lower() for each in self.attributes.get(number, ()))
                self.objects.append(SceneObject(box=box, name=name, attributes=attributes))
                self._index[number] = len(self.objects) - 1
        return self._index.get(number)

    def add_relation(self, value: dict) -> None:
        with self.problems.at(f"{self.place}: relationship {value.get('relationship_id')}"):
            subject, other = self.add_object(value["subject"]), self.add_object(value["object"])
            if subject is not None and other is not None and subject != other and value["predicate"].strip():
                self.relations.append(Relation(subject, clean(value["predicate"]).lower(), other))

    def add_region(self, value: dict) -> None:
        with self.problems.at(f"{self.place}: region {value.get('region_id')}"):
            box = box_from([value[key] for key in ("x", "y", "width", "height")], self.size)
            self.descriptions.append(Description(clean(value["phrase"]).rstrip(" ."), len(self.objects)))
            self.objects.append(SceneObject(box=box))
