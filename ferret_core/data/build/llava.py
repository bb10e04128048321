"""LLaVA-Instruct (`llava_instruct_150k.json`) with the boxes of a detector behind the things it names (paper section 4.2).

Its pictures are COCO's: `instances_train2017.json` beside it gives their sizes and the names of categories. Boxes come
from `--detections`, by default from that file too. Two layouts are read, of which the first is that of COCO's results:

    [{"image_id": 33471, "category_id": 6, "bbox": [x, y, width, height], "score": 0.9}, ...]
    {"000000033471.jpg": [{"label": "bus", "box": [x1, y1, x2, y2], "score": 0.9}, ...], ...}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ferret_core.data.build.coco import CocoFile
from ferret_core.data.build.reading import Request, check_items, load_json
from ferret_core.data.build.scene import Scene, check_plain, clean_name, coco_id_of, list_boxes, merge_doubles
from ferret_core.data.build.words import SYNONYMS, is_plural, plural
from ferret_core.prompt import IMAGE_TOKEN, Turn

MOST_BOXES = 6  # behind one phrase
_SPEAKERS = ("human", "gpt")


def read_llava(request: Request) -> Iterator[Scene]:
    """One scene a picture, with all its dialogues, grounded."""
    file = CocoFile(request, "instances_train2017.json")
    if request.detections:
        _replace_annotations(file, request)
    dialogues: dict[int, list[tuple[Turn, ...]]] = {}
    for item in request.items("llava_instruct_150k.json"):
        with request.problems.at(f"{request.root}/llava_instruct_150k.json: item {item.get('id')}"):
            number = coco_id_of(item["image"])
            if number not in file.images:
                raise ValueError(f"image {item['image']} is not in {file.path}")
            dialogues.setdefault(number, []).append(_read_turns(item["conversations"]))
    file.images = {number: image for number, image in file.images.items() if number in dialogues}
    for scene, _, image in file.scenes():
        scene = merge_doubles(scene)  # two detections of one thing would make it ambiguous
        yield replace(scene, dialogues=tuple(ground(turns, scene) for turns in dialogues[image["id"]]))


def ground(turns: tuple[Turn, ...], scene: Scene) -> tuple[Turn, ...]:
    """The dialogue, in each answer the first mention of each label followed by its boxes.

    A singular is located if one object bears the label, a plural if 2 to 6 do: what else it means is anybody's guess.
    """
    said: dict[str, tuple[str, list[int]]] = {}
    for label, indices in scene.by_name.items():
        names = dict.fromkeys((label, *(other for group in SYNONYMS if label in group for other in group)))
        for name in (name for name in names if is_plural(name) == is_plural(label)):
            words = name if len(indices) == 1 else plural(name)
            if len(indices) <= MOST_BOXES and label not in scene.partial:
                said.setdefault(words, (label, indices))
            said.setdefault(name, (label, []))  # so that no shorter label is found inside it
    if not said:
        return turns
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(said, key=lambda name: (-len(name), name))))})\b(?!-)", re.I)

    def located(answer: str) -> str:
        done: set[str] = set()

        def phrase(match: re.Match[str]) -> str:
            label, indices = said[match[0].lower()]
            if not indices or label in done:
                return match[0]
            done.add(label)
            return f"{match[0]} {list_boxes(indices)}"

        return pattern.sub(phrase, answer)

    return tuple(Turn(turn.question, located(turn.answer or "")) for turn in turns)


def _read_turns(messages: list[dict[str, str]]) -> tuple[Turn, ...]:
    speakers = [message["from"] for message in messages]
    if not messages or speakers != list(_SPEAKERS) * (len(messages) // 2):
        raise ValueError(f"conversations: must alternate between human and gpt, got {', '.join(speakers) or 'none'}")
    texts = [check_plain(message["value"].replace(IMAGE_TOKEN, "").strip()) for message in messages]
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))


def _replace_annotations(file: CocoFile, request: Request) -> None:
    """The detections as annotations of the COCO file."""
    assert request.detections
    path, labels = request.detections, {name: number for number, name in file.categories.items()}
    request.files.append(path)
    data = load_json(path)
    file.annotations = {}
    if isinstance(data, dict):
        found = [
            {"image": name, **each} for name, group in data.items() for each in check_items(path, group, file.problems, name)
        ]
    else:
        found = list(check_items(path, data, file.problems))
    for i, each in enumerate(found):
        with file.problems.at(f"{path}: detection {i}"):
            if float(each["score"]) >= request.min_score:
                annotation = _annotation(each, labels) | {"id": i}
                file.annotations.setdefault(annotation["image_id"], []).append(annotation)
    file.categories = {number: name for name, number in labels.items()}
    file.path = path


def _annotation(value: dict[str, Any], labels: dict[str, int]) -> dict[str, Any]:
    if "category_id" in value:
        return {key: value[key] for key in ("image_id", "category_id", "bbox")}
    number = coco_id_of(value["image"])
    if number is None:
        raise ValueError(f"{value['image']} is no file name of COCO")
    x1, y1, x2, y2 = value["box"]
    label = labels.setdefault(clean_name(value["label"]), max(labels.values(), default=0) + 1)
    return {"image_id": number, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
