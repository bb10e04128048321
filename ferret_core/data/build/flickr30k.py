"""Flickr30k Entities: `Sentences/ID.txt`, `Annotations/ID.xml`, and the lists `train.txt`, `val.txt`, `test.txt`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from ferret_core.data.build.reading import Request
from ferret_core.data.build.scene import Description, Scene, SceneObject, clean, list_boxes, size_from
from ferret_core.geometry import Box, ImageSize

SPLITS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
PHRASE = re.compile(r"\[/EN#(\d+)/?(\S*) ([^\]]+)\]")
"""`[/EN#42/people/other a man]`: entity, types, words."""
_BEFORE_MARK = re.compile(r" (?=[.,;:!?](?:\s|$)|'s\b|n't\b)")


def read_flickr30k(request: Request) -> Iterator[Scene]:
    """Scenes of Flickr30k Entities: five captions with the boxes of their phrases. Entity 0 is not in the picture."""
    ids, sentences, annotations = (request.locate(name) for name in (SPLITS[request.split], "Sentences", "Annotations"))
    for number in ids.read_text().split():
        xml, txt = annotations / f"{number}.xml", sentences / f"{number}.txt"
        with request.problems.at(str(xml)):
            scene, entities = _scene(number, xml)
            captions: list[str] = []
            descriptions: dict[Description, None] = {}
            for line, sentence in enumerate(txt.read_text(encoding="utf-8").splitlines(), 1):
                if sentence.strip():
                    with request.problems.at(f"{txt}: line {line}"):
                        captions.append(_grounded(sentence, entities))
                        descriptions.update(
                            (Description(clean(match[3]), entities[match[1]][0]), None)
                            for match in PHRASE.finditer(sentence)
                            if len(entities.get(match[1], ())) == 1
                        )
            yield Scene(**scene, captions=tuple(captions), descriptions=tuple(descriptions))


def read_annotation(path: Path) -> tuple[ImageSize, list[tuple[list[str], Box]]]:
    """The picture's size, and boxes as they are published, in pixels counted from 1, with the entities that each shows."""
    if not path.is_file():
        raise ValueError("no such file")
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML: {error}") from error
    size = size_from(root.findtext("size/width"), root.findtext("size/height"))
    boxes: list[tuple[list[str], Box]] = []
    for item in root.iter("object"):
        bounds = item.find("bndbox")
        if bounds is not None:
            box = Box(*(float(bounds.findtext(key, "nan")) for key in ("xmin", "ymin", "xmax", "ymax")))
            boxes.append(([name.text or "" for name in item.findall("name")], box))
    return size, boxes


def _scene(number: str, path: Path) -> tuple[dict, dict[str, list[int]]]:
    """Fields of the scene, and the objects of each entity."""
    size, boxes = read_annotation(path)
    objects: list[SceneObject] = []
    entities: dict[str, list[int]] = {}
    for names, box in boxes:
        if not box.clamp(size).area > 0:
            raise ValueError(f"bndbox of entity {', '.join(names)}: covers nothing of the image ({size})")
        for name in names:
            entities.setdefault(name, []).append(len(objects))
        objects.append(SceneObject(box=box.clamp(size)))
    return {"id": number, "image": f"{number}.jpg", "size": size, "objects": tuple(objects)}, entities


def _grounded(sentence: str, entities: dict[str, list[int]]) -> str:
    """The caption with the boxes of each phrase behind it."""
    plain = clean(PHRASE.sub(lambda match: f"\0{match[1]}\0{match[3]}\0", sentence))
    if "[" in plain:
        raise ValueError(f"a phrase that does not end: {sentence!r}")

    def phrase(match: re.Match[str]) -> str:
        boxes = list_boxes(entities.get(match[1], ()))
        return f"{match[2]} {boxes}" if boxes else match[2]

    return _BEFORE_MARK.sub("", re.sub(r"\0(\d+)\0([^\0]+)\0", phrase, plain))
