"""Visual7W pointing (Zhu et al., 2016): which of four boxes answers a question? As published, or built from annotations.

`Which is the shiny thing? Choose from [region0], [region1], [region2], [region3].` The candidates are regions, in an order that
chance has made, and the answer's first box is taken for the candidate that it overlaps most. An answer without a box, or whose
box overlaps none, is wrong; whoever guesses has 25 %. `strict` asks for an IoU of at least 0.5 with the right candidate.

Built: which is the dog, the only one in the picture, among three other things. COCO, or the playground.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ferret_core.data.build.reading import Problems, load_json
from ferret_core.data.build.scene import Scene, box_from
from ferret_core.data.build.words import verb
from ferret_core.evaluation.benchmark import SAME_PLACE, Benchmark, Item, Prediction, Tally, share
from ferret_core.geometry import Box, ImageSize, box_iou
from ferret_core.grounding import find_spans

CANDIDATES = 4
SPLITS = ("train", "val", "test")


def grade(prediction: Prediction) -> Tally:
    """Which candidate the first box is."""
    item = prediction.item
    spans = find_spans(prediction.answer or "", item.space)
    if not spans:
        return {"items": 1.0, "without a box": 1.0}
    ious = [box_iou(spans[0].box, candidate) for candidate in item.regions if isinstance(candidate, Box)]
    right = ious[item.expected["choice"]]
    return {
        "items": 1.0,
        "right": float(right > 0 and right == max(ious)),
        "strict": float(right == max(ious) and right >= SAME_PLACE),
        "IoU": right,
        "beside all": float(max(ious) == 0),
    }


BENCHMARK = Benchmark(
    name="visual7w",
    protocol="Right: of the four boxes, the answer's first box overlaps the right one most. strict: with an IoU of at least "
    "0.5. An answer without a box is wrong; who guesses has 25 %.",
    grade=grade,
    figures=(
        share("accuracy", "right"),
        share("accuracy, strict", "strict"),
    ),
    counts=("without a box", "beside all"),
    quality="IoU",
    max_new_tokens=64,
)


def read_visual7w(path: Path, size_of: Callable[[str], ImageSize], split: str = "test", seed: int = 0) -> Iterator[Item]:
    """Questions of `dataset_v7w_pointing.json`.

    Args:
        path: the file.
        size_of: of a picture, in pixels: the file does not say it.
        split: one of `SPLITS`.
        seed: of the candidates' order; in the file the right one stands alone.

    Raises:
        ValueError: naming the argument or the question that is missing or broken.
    """
    if split not in SPLITS:
        raise ValueError(f"--split: must be one of {', '.join(SPLITS)}, got {split!r}")
    content = load_json(path)
    if not isinstance(content, dict) or not {"images", "boxes"} <= content.keys():
        raise ValueError(f"{path}: must hold images and boxes, as dataset_v7w_pointing.json does")
    return _read(content, path, size_of, split, seed)


def _read(content: dict, path: Path, size_of: Callable[[str], ImageSize], split: str, seed: int) -> Iterator[Item]:
    problems, rng = Problems(), random.Random(seed)
    boxes: dict[Any, dict] = {box["box_id"]: box for box in content["boxes"]}
    for image in content["images"]:
        if image["split"] != split:
            continue
        for pair in image["qa_pairs"]:
            with problems.at(f"{path}: question {pair.get('qa_id')}"):
                size = size_of(image["filename"])
                found = [boxes[number] for number in (pair["answer"], *pair["multiple_choices"])]
                places = [box_from([each[side] for side in ("x", "y", "width", "height")], size) for each in found]
                yield _item(str(pair["qa_id"]), split, image["filename"], size, pair["question"], places, rng)


def build_which(scenes: Iterable[Scene], seed: int = 0) -> Iterator[Item]:
    """A question for each picture that has an object, the only one of its name, and three of other names."""
    rng = random.Random(seed)
    for scene in scenes:
        things = [i for i in range(len(scene.objects)) if scene.objects[i].name and scene.objects[i].pointable]
        alone = [i for i in things if scene.only(scene.objects[i].name) == i]
        if not alone or len(things) < CANDIDATES:
            continue
        right = rng.choice(alone)
        chosen = [right, *rng.sample([i for i in things if i != right], CANDIDATES - 1)]
        name = scene.objects[right].name
        places = [scene.objects[i].box for i in chosen]
        yield _item(scene.id, "which", scene.image, scene.size, f"Which {verb(name)} the {name}?", places, rng)


def _item(name: str, group: str, image: str, size: ImageSize, question: str, boxes: Sequence[Box], rng: random.Random) -> Item:
    """The right box comes first in `boxes`."""
    order = rng.sample(range(len(boxes)), len(boxes))
    choices = ", ".join(f"[region{i}]" for i in range(len(boxes)))
    return Item(
        id=name,
        group=group,
        image=image,
        size=size,
        question=f"{question} Choose from {choices}.",
        regions=tuple(boxes[i] for i in order),
        expected={"choice": order.index(0), "boxes": [list(boxes[0].coordinates(size))]},
    )
