"""Grounded captioning on Flickr30k Entities: is what a caption says right, and is it where the caption says?

* BLEU@4 of the words, against the five captions: n-grams clipped and pooled over all pictures, with the brevity penalty.
* F1_all: an object of the caption is right if the picture has one of its class at its place, IoU of at least 0.5. F1 of
  precision and recall for each class, mean over the classes of the annotations.
* F1_loc: the same among objects whose class both the caption and the annotations have: is what was named right put right?

An object's class is the last word of its phrase, in the singular. METEOR, CIDEr and SPICE: see `caption_metrics`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from ferret_core.data.build.words import singular
from ferret_core.evaluation.benchmark import SAME_PLACE, Benchmark, Figure, Item, Prediction, Sums, Tally, divide
from ferret_core.evaluation.caption_metrics import caption_metrics
from ferret_core.evaluation.flickr_entities import read_captions
from ferret_core.geometry import Box, box_iou
from ferret_core.grounding import find_spans, without_boxes

QUESTION = "Describe the image."
_LONGEST = 4  # n-gram
_WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")


def grade(prediction: Prediction) -> Tally:
    """N-grams of the words, and objects by class."""
    item, answer = prediction.item, prediction.answer or ""
    return {**_bleu_tally(without_boxes(answer), item.expected["captions"]), **_object_tally(prediction, answer)}


def _bleu_tally(caption: str, references: Sequence[str]) -> dict[str, float]:
    words, others = _words(caption), [_words(reference) for reference in references]
    nearest = min((len(other) for other in others), key=lambda length: (abs(length - len(words)), length))
    tally = {"words": float(len(words)), "reference words": float(nearest)}
    for n in range(1, _LONGEST + 1):
        allowed: Counter[tuple[str, ...]] = Counter()
        for other in others:
            allowed |= _ngrams(other, n)
        tally[f"{n}-grams"] = float(max(0, len(words) - n + 1))
        tally[f"right {n}-grams"] = float((_ngrams(words, n) & allowed).total())
    return tally


def _object_tally(prediction: Prediction, answer: str) -> dict[str, float]:
    there: dict[str, list[Box]] = {}
    for phrase, box in prediction.item.expected["objects"]:
        there.setdefault(class_of(phrase), []).append(Box(*box))
    said: dict[str, list[Box]] = {}
    for span in find_spans(answer, prediction.item.space):
        if span.phrase:
            said.setdefault(class_of(span.phrase), []).append(span.box)
    tally = {f"there {name}": float(len(boxes)) for name, boxes in there.items()}
    tally |= {f"said {name}": float(len(boxes)) for name, boxes in said.items()}
    found = 0.0
    for name in sorted(there.keys() & said.keys()):
        right = _matched(said[name], there[name])
        found += right
        tally |= {f"right {name}": right, f"there, said {name}": len(there[name]), f"said, there {name}": len(said[name])}
    tally["objects"] = float(sum(map(len, there.values())))
    tally["objects found"] = found
    return tally


def _matched(given: Sequence[Box], right: Iterable[Box]) -> float:
    """How many given boxes are at the place of a right one, each of which counts once."""
    left, found = list(right), 0
    for box in given:
        best = max(left, key=lambda other: box_iou(box, other), default=None)
        if best and box_iou(box, best) >= SAME_PLACE:
            left.remove(best)
            found += 1
    return float(found)


def class_of(phrase: str) -> str:
    """ "dog" of "Two brown dogs"; the class of an empty phrase is empty."""
    words = _words(phrase)
    return singular(words[-1]) if words else ""


def bleu(sums: Sums) -> np.ndarray:
    """BLEU@4."""
    precisions = [divide(sums[f"right {n}-grams"], sums[f"{n}-grams"], 0.0) for n in range(1, _LONGEST + 1)]
    with np.errstate(divide="ignore"):
        mean = np.exp(np.mean(np.log(precisions), axis=0))  # 0 if any is
    return mean * np.exp(np.minimum(0.0, 1 - divide(sums["reference words"], sums["words"], math.inf)))


def f1_all(sums: Sums) -> np.ndarray:
    """Of objects named and located."""
    return _mean_f1(sums, "said", "there")


def f1_loc(sums: Sums) -> np.ndarray:
    """Of objects located, where the class was named rightly."""
    return _mean_f1(sums, "said, there", "there, said")


def _mean_f1(sums: Sums, said: str, there: str) -> np.ndarray:
    """Mean over the classes that a sample has."""
    names = [name.removeprefix("there ") for name in sums if name.startswith("there ")]
    per_class = [divide(2 * sums[f"right {n}"], sums[f"{said} {n}"] + sums[f"{there} {n}"]) for n in names]
    here = [np.where(sums[f"{there} {n}"] > 0, f1, np.nan) for n, f1 in zip(names, per_class, strict=True)]
    if not here:
        return np.full(sums["words"].shape, np.nan)
    stacked = np.array(here)
    known = ~np.isnan(stacked)
    return divide(np.where(known, stacked, 0.0).sum(axis=0), known.sum(axis=0))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


BENCHMARK = Benchmark(
    name="caption",
    protocol="BLEU@4, METEOR, CIDEr and SPICE against five captions. F1_all: F1 of objects named and located (IoU of at least "
    "0.5), by class, mean over classes; F1_loc: of the classes that caption and annotations share. An object's class is the "
    "last word of its phrase, in the singular.",
    grade=grade,
    figures=(
        Figure(name="BLEU@4", value=bleu),
        Figure(name="F1_all", value=f1_all),
        Figure(name="F1_loc", value=f1_loc),
    ),
    joint=caption_metrics,
    counts=("objects", "objects found"),
    quality="objects found",
    max_new_tokens=256,
)


def read_captioning(root: Path, split: str = "test") -> Iterator[Item]:
    """A question about each picture of a split. Arguments and errors as for `read_captions`."""
    for image, group in groupby(read_captions(root, split), key=lambda caption: caption.picture):
        captions = list(group)
        objects = {
            (phrase["phrase"], tuple(box)) for caption in captions for phrase in caption.phrases for box in phrase["boxes"]
        }
        by_class = {(class_of(phrase), box): (phrase, box) for phrase, box in sorted(objects)}  # five captions, one dog
        yield Item(
            id=Path(image).stem,
            group=split,
            image=image,
            size=captions[0].size,
            question=QUESTION,
            expected={
                "captions": [caption.text for caption in captions],
                "objects": [[phrase, list(box)] for phrase, box in by_class.values()],
                "boxes": sorted({box for _, box in by_class}),
            },
        )
