"""Referring expression comprehension: RefCOCO, RefCOCO+ and RefCOCOg, Acc@0.5.

`What is the location of EXPRESSION in the image?`, one expression at a time. The paper's protocol takes the first box of the
answer. The original's script prints three figures: of the first box, of the mean of all boxes, and of the best one, in the
order of their value, so that its output does not say which is which; here each has its name. `strict` is a protocol without
charity: one box and no other, as `grounding.find_spans` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ferret_core.data.build.coco import CocoFile, image_path
from ferret_core.data.build.reading import Problems, Request, check_items
from ferret_core.data.build.refcoco import REF_FILES, load_refs
from ferret_core.data.build.scene import box_from, size_from
from ferret_core.evaluation.benchmark import SAME_PLACE, Benchmark, Item, Paper, Prediction, Tally, share
from ferret_core.evaluation.boxes_in_order import MalformedAnswerError, read_boxes
from ferret_core.geometry import Box, box_iou
from ferret_core.grounding import find_spans

DATASETS = {"refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg"}
SPLITS = ("val", "test", "testA", "testB")

PAPER: dict[str, Paper] = {
    "refcoco val": {"7B": 0.8749, "13B": 0.8948},
    "refcoco testA": {"7B": 0.9135, "13B": 0.9241},
    "refcoco testB": {"7B": 0.8245, "13B": 0.8436},
    "refcoco+ val": {"7B": 0.8078, "13B": 0.8281},
    "refcoco+ testA": {"7B": 0.8738, "13B": 0.8814},
    "refcoco+ testB": {"7B": 0.7314, "13B": 0.7517},
    "refcocog val": {"7B": 0.8393, "13B": 0.8583},
    "refcocog test": {"7B": 0.8476, "13B": 0.8634},
}


def grade(prediction: Prediction) -> Tally:
    """By the first box, the mean box and the best box; and strictly."""
    item, answer = prediction.item, prediction.answer or ""
    (right,) = item.boxes
    tally = {"items": 1.0}
    try:
        boxes = [named.box for named in read_boxes(answer, item.space)]
    except MalformedAnswerError:
        boxes, tally["malformed"] = [], 1.0
    if boxes:
        mean = Box(*np.mean([box.coordinates(item.space) for box in boxes], axis=0))
        ious = [box_iou(box, right) for box in boxes]
        tally |= {"IoU": ious[0], "mean IoU": box_iou(mean, right), "best IoU": max(ious)}
        tally |= {"first": ious[0] >= SAME_PLACE, "mean": tally["mean IoU"] >= SAME_PLACE, "best": max(ious) >= SAME_PLACE}
        tally["several boxes"] = len(boxes) > 1
    elif "malformed" not in tally and prediction.answer is not None:
        tally["without a box"] = 1.0
    spans = find_spans(answer, item.space)
    tally["strict"] = len(spans) == len(boxes) == 1 and box_iou(spans[0].box, right) >= SAME_PLACE
    return tally


BENCHMARK = Benchmark(
    name="refexp",
    protocol="Acc@0.5: the first box of the answer has an IoU of at least 0.5 with the right one. An answer that cannot be "
    "read, or has no box, is wrong. `mean box` and `best box` are the original script's other two figures; `strict` asks for "
    "exactly one well-formed box.",
    grade=grade,
    figures=(
        share("Acc@0.5", "first", paper=PAPER),
        share("Acc@0.5, mean box", "mean"),
        share("Acc@0.5, best box", "best"),
        share("Acc@0.5, strict", "strict"),
        share("mean IoU", "IoU"),
    ),
    counts=("malformed", "without a box", "several boxes"),
    quality="IoU",
    max_new_tokens=64,
)


def question(expression: str) -> str:
    """The paper's question about an expression; commas are left out, as the original does."""
    return f"What is the location of {expression.replace(',', '')} in the image?"


def read_refexp(path: Path, dataset: str = "refcoco", split: str = "", problems: Problems | None = None) -> Iterator[Item]:
    """Items of a split.

    Args:
        path: a directory with `refs(BY).p` and `instances.json`, as RefCOCO is published; or a JSON file in COCO's layout, in
            which each image has one caption, as the original's `finetune_refcoco_val.json`.
        dataset: one of `DATASETS`; a file says it itself.
        split: one of `SPLITS`; by default what the name of a file ends with, or `val`.
        problems: what may be left out because it is broken; nothing by default.

    Raises:
        ValueError: naming what is missing or broken.
    """
    if dataset not in DATASETS:
        raise ValueError(f"--dataset: must be one of {', '.join(DATASETS)}, got {dataset!r}")
    named = path.stem.rpartition("_")[2]
    split = split or (named if named in SPLITS else "val")
    if split not in SPLITS:
        raise ValueError(f"--split: must be one of {', '.join(SPLITS)}, got {split!r}")
    problems = problems or Problems()
    return _of_file(path, split, problems) if path.is_file() else _of_refs(path, dataset, split, problems)


def _of_refs(root: Path, dataset: str, split: str, problems: Problems) -> Iterator[Item]:
    request = Request(root, problems=problems)
    file = CocoFile(request, "instances.json")
    annotations = {each["id"]: each for of_image in file.annotations.values() for each in of_image}
    path = request.locate(*REF_FILES)
    found = False
    for ref in check_items(path, load_refs(path), problems):
        with problems.at(f"{path}: ref {ref.get('ref_id')}"):
            if ref["split"] != split:
                continue
            found = True
            image, box = file.images[ref["image_id"]], annotations[ref["ann_id"]]["bbox"]
            for number, sentence in enumerate(ref["sentences"]):
                yield _item(f"{ref['ref_id']}-{number}", f"{dataset} {split}", image, sentence["sent"], box)
    if not found:
        raise ValueError(f"{path}: no ref of split {split!r}; --split says which")


def _of_file(path: Path, split: str, problems: Problems) -> Iterator[Item]:
    file = CocoFile(Request(path.parent, problems=problems), path.name)
    for number, image in file.images.items():
        with problems.at(f"{path}: image {number}"):
            boxes = file.annotations.get(number, [])
            if len(boxes) != 1:
                raise ValueError(f"must have one annotation, has {len(boxes)}")
            dataset = image["dataset_name"]
            yield _item(str(number), f"{dataset} {split}", image, image["caption"], boxes[0]["bbox"])


def _item(name: str, group: str, image: dict[str, Any], expression: str, bbox: list[float]) -> Item:
    size = size_from(image["width"], image["height"])
    x, y, width, height = map(float, bbox)
    box_from(bbox, size)  # or a clear error; scored is the box as it was published, which may stick out a little
    return Item(
        id=name,
        group=group,
        image=image_path(image),
        size=size,
        question=question(expression),
        expected={"expression": expression, "boxes": [[x, y, x + width, y + height]]},
    )
