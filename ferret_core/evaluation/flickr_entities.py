"""Phrase grounding on Flickr30k Entities: Recall@1, 5 and 10 by type of phrase, merged-box and any-box.

`What are the locations of a man, a red hat?`: every phrase of a caption that has boxes, in one question. A phrase is found if
one of the first k boxes given for it has an IoU of at least 0.5

* merged-box: with the smallest box around all its boxes;
* any-box: with any of its boxes.

The original gives the nth box of an answer to the nth phrase, whatever the answer says it is; so does the default. `strict`
gives a phrase the boxes that the answer puts behind its very words. Annotations are published with pixels counted from 1; as
usual, 1 is subtracted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferret_core.data.build.flickr30k import PHRASE, read_annotation
from ferret_core.data.build.flickr30k import SPLITS as LISTS
from ferret_core.data.build.reading import Problems, Request, lines
from ferret_core.evaluation.benchmark import SAME_PLACE, Benchmark, Figure, Item, Paper, Prediction, Tally, share
from ferret_core.evaluation.boxes_in_order import MalformedAnswerError, read_boxes
from ferret_core.geometry import Box, ImageSize, box_iou
from ferret_core.grounding import find_spans

SPLITS = {"val": "validation", "test": "test", "train": "train"}
TYPES = ("all", "people", "clothing", "bodyparts", "animals", "vehicles", "instruments", "scene", "other")
TOP = (1, 5, 10)
_PAPER: dict[str, Paper] = {
    "val": {"7B": 0.8039, "13B": 0.8113},
    "test": {"7B, unconfirmed": 0.8221, "13B, unconfirmed": 0.8476},
}


def grade(prediction: Prediction) -> Tally:
    """Phrases found, by type, protocol and k."""
    item, answer = prediction.item, prediction.answer or ""
    tally: dict[str, float] = {}

    def add(name: str, value: float = 1.0) -> None:
        tally[name] = tally.get(name, 0.0) + value

    try:
        in_order = [named.box for named in read_boxes(answer, item.space)]
    except MalformedAnswerError:
        in_order = []
        add("malformed")
    phrases = item.expected["phrases"]
    spans = find_spans(answer, item.space)
    add("fewer boxes than phrases", float(len(in_order) < len(phrases)))
    for number, phrase in enumerate(phrases):
        right = [Box(*box) for box in phrase["boxes"]]
        by_protocol = {
            "merged": (in_order[number : number + 1], [merged(right)]),
            "any": (in_order[number : number + 1], right),
            "strict": ([span.box for span in spans if _same_words(span.phrase, phrase["phrase"])], [merged(right)]),
        }
        for kind in ("all", *phrase["types"]):
            add(f"{kind} phrases")
            for protocol, (given, boxes) in by_protocol.items():
                for k in TOP:
                    add(f"{kind} {protocol}@{k}", float(_found(given[:k], boxes)))
    tally["found"] = tally["all merged@1"] / len(phrases)
    return tally


def merged(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of them."""
    return Box(min(b.x1 for b in boxes), min(b.y1 for b in boxes), max(b.x2 for b in boxes), max(b.y2 for b in boxes))


def _found(given: Sequence[Box], right: Sequence[Box]) -> bool:
    return any(box_iou(a, b) >= SAME_PLACE for a in given for b in right)


def _same_words(said: str, asked: str) -> bool:
    return said.lower().split() == asked.lower().split()


def _figures() -> Iterator[Figure]:
    for protocol in ("merged", "any", "strict"):
        for kind in TYPES:
            for k in TOP:
                name = f"R@{k}, {'merged, strict' if protocol == 'strict' else protocol}, {kind}"
                paper = _PAPER if (protocol, kind, k) == ("merged", "all", 1) else {}
                yield share(name, f"{kind} {protocol}@{k}", f"{kind} phrases", paper=paper)


BENCHMARK = Benchmark(
    name="flickr",
    protocol="Recall@k: of all phrases with boxes, those for which one of the first k boxes has an IoU of at least 0.5 with "
    "the box around all of a phrase's (merged) or with any of them (any). The nth box of an answer belongs to the nth phrase; "
    "strict: to the phrase that stands before it, word for word. An answer that cannot be read finds nothing.",
    grade=grade,
    figures=tuple(_figures()),
    counts=("all phrases", "malformed", "fewer boxes than phrases"),
    quality="found",
    max_new_tokens=256,
)


def question(phrases: Sequence[str]) -> str:
    """What is asked about the phrases of a caption."""
    return f"What are the locations of {', '.join(phrases)}?"


@dataclass(frozen=True, slots=True)
class Caption:
    """A sentence about a picture."""

    id: str
    """The picture's, a hyphen, and the sentence's number from 0."""
    picture: str
    """Name of its file."""
    size: ImageSize
    text: str
    phrases: list[dict[str, Any]]
    """Those that have boxes: phrase, types, boxes in pixels counted from 0."""


def read_flickr(root: Path, split: str = "val", problems: Problems | None = None) -> Iterator[Item]:
    """A question about each caption that has a phrase with boxes. Arguments and errors as for `read_captions`."""
    for caption in read_captions(root, split, problems):
        if caption.phrases:
            yield Item(
                id=caption.id,
                group=split,
                image=caption.picture,
                size=caption.size,
                question=question([phrase["phrase"] for phrase in caption.phrases]),
                expected={
                    "caption": caption.text,
                    "phrases": caption.phrases,
                    "boxes": [box for phrase in caption.phrases for box in phrase["boxes"]],
                },
            )


def read_captions(root: Path, split: str, problems: Problems | None = None) -> Iterator[Caption]:
    """All captions of a split, picture by picture.

    Args:
        root: directory with `Annotations/`, `Sentences/`, and the list of the split, as Flickr30k Entities is published.
        split: one of `SPLITS`.
        problems: what may be left out because it is broken; nothing by default.

    Raises:
        ValueError: naming what is missing or broken.
    """
    if split not in SPLITS:
        raise ValueError(f"--split: must be one of {', '.join(SPLITS)}, got {split!r}")
    request = Request(root, SPLITS[split], problems or Problems())
    ids, sentences, annotations = (request.locate(name) for name in (LISTS[request.split], "Sentences", "Annotations"))
    for number in ids.read_text().split():
        with request.problems.at(str(annotations / f"{number}.xml")):
            size, boxes = read_annotation(annotations / f"{number}.xml")
            entities: dict[str, list[list[float]]] = {}
            for names, box in boxes:
                for name in names:  # scored as published, even where it sticks out
                    entities.setdefault(name, []).append([value - 1 for value in box.coordinates(size)])
            for line, sentence in enumerate(lines(sentences / f"{number}.txt")):
                if not sentence.strip():
                    continue
                phrases = [
                    {"phrase": match[3], "types": match[2].split("/"), "boxes": entities[match[1]]}
                    for match in PHRASE.finditer(sentence)
                    if match[1] in entities
                ]
                yield Caption(f"{number}-{line}", f"{number}.jpg", size, PHRASE.sub(r"\3", sentence), phrases)
