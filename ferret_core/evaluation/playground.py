"""Accuracy on the playground's test split: regions named, phrases located, questions answered, objects captioned.

Every scene is asked one question of each kind, and "What is [region0]?" once for each way of pointing. Scenes are a function of
their index: the benchmark needs no download.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from PIL import Image

from ferret_core.data.playground import (
    GESTURES,
    KINDS,
    NAMED,
    WORLDS,
    Example,
    Thing,
    generate_scene,
    playground_examples,
    scene_rng,
)
from ferret_core.evaluation.asking import ask_here, predict_with
from ferret_core.evaluation.benchmark import SAME_PLACE, Benchmark, Figure, Item, Joint, Prediction, Tally, share
from ferret_core.evaluation.results import table
from ferret_core.evaluation.scores import Scores, score
from ferret_core.geometry import box_iou
from ferret_core.grounding import Span, find_spans, without_boxes
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import write_boxes

TARGETS = {
    "named (box)": 0.97,
    "named (point)": 0.93,
    "named (scribble)": 0.93,
    "located (by name)": 0.92,
    "located (by relation)": 0.85,
    "yes or no": 0.97,
    "captioned objects": 0.85,
}
"""What the bundled checkpoint is held to."""

OVERALL = "nothing wrong"
"""Name of the figure over all questions."""
_MOST = 15  # confusions in a report
_LOCATED = {"locate": "located (by name)", "locate_by_relation": "located (by relation)"}
_ALONE = tuple(kind for kind in KINDS if kind not in ("name", "follow_up"))  # of one turn, pointed at in any way


def grade(prediction: Prediction) -> Tally:
    """What an answer got right, and of how much: `named (box)` of `asked named (box)`; `right` if nothing of it was wrong."""
    findings = list(_findings(prediction))
    tally: Counter[str] = Counter()
    for name, right in findings:
        tally[_asked(name)] += 1
        tally[name] += right
    return {"items": 1.0, "right": float(all(right for _, right in findings)), **tally}


def confusions(predictions: Sequence[Prediction]) -> Joint:
    """A note of what was most often called by a wrong name."""
    found: Counter[tuple[str, str]] = Counter()
    for each in predictions:
        if each.item.expected["kind"] == "name" and each.answer is not None:
            pointed_at, called = _called(each.item.expected["answer"], each.item), _called(each.answer, each.item)
            found[pointed_at, called] += pointed_at != called
    rows = [[thing, name, str(times)] for (thing, name), times in sorted((+found).items(), key=lambda entry: -entry[1])[:_MOST]]
    if not rows:
        return Joint()
    return Joint(notes=("Most often called by a wrong name:", table(["what was pointed at", "was called", "times"], rows)))


def _asked(name: str) -> str:
    return f"asked {name}"


def _figures() -> Iterator[Figure]:
    others = (kind.replace("_", " ") for kind in _ALONE if kind not in (*_LOCATED, "describe"))
    named = (f"named ({gesture})" for gesture in GESTURES)
    yield share(OVERALL, "right")
    captions = ("captioned objects", "objects in captions", "described (every word)")
    for name in chain(
        named, ("located", *_LOCATED.values(), "found absent"), captions, ("yes or no",), others, ("boxes of right answers",)
    ):
        yield share(name, name, _asked(name), target=TARGETS.get(name))


BENCHMARK = Benchmark(
    name="playground",
    protocol="One question of each kind about every scene. Named, and all that is not listed here: the words of the answer, "
    "boxes aside, are exactly the right ones. Located: every expected box has an answered one with an IoU of at least 0.5, in "
    "order (from left to right) and in number. Yes or no: the first word is right. Captioned objects: of all objects that "
    "captions name with a box, those that are there: a thing of that name with an IoU of at least 0.5, each once. Objects in "
    "captions: of all things in the scenes, those captioned right. Boxes of right answers: of the answers whose words are "
    "right, those whose boxes are, too, in any order but for located.",
    grade=grade,
    figures=tuple(_figures()),
    joint=confusions,
    quality="right",
    max_new_tokens=160,
)


def playground_items(scenes: int, first: int = 0, seed: int = 0, style: str | Path | None = None) -> Iterator[Item]:
    """Questions about `scenes` scenes of the test split, from the one with index `first`.

    A kind of question that a scene does not lend itself to is left out. See `playground_example` for `seed` and `style`; raises
    `ValueError` if there is no such style.
    """
    conversations = [(1, ("name",), (gesture,)) for gesture in GESTURES] + [(1, (kind,), GESTURES) for kind in _ALONE]
    for index in range(first, first + scenes):
        for example in playground_examples("test", index, conversations, style, seed):
            if example.kinds:
                yield to_item(example, picture_name(index, seed, style))


def to_item(example: Example, image: str = "") -> Item:
    """The question of an example of one turn."""
    record, (turn,), (kind,) = example.record, example.record.turns, example.kinds
    regions = tuple(example.regions.values())
    return Item(
        id="-".join((record.id, kind, *(region.kind for region in regions))),
        group=Path(image).name,  # the style
        image=image,
        size=record.size,
        question=turn.question,
        regions=regions,
        expected={
            "kind": kind,
            "answer": write_boxes(turn.answer or "", record.boxes, record.size),
            "boxes": [list(box.coordinates(record.size)) for box in record.boxes],
        },
    )


def picture_name(index: int, seed: int = 0, style: str | Path | None = None) -> str:
    """What `playground_picture` draws."""
    return f"playground/{seed}/{index}/{style or WORLDS['test'].style}"


def playground_picture(item: Item) -> Image.Image:
    """The picture of an item, drawn again."""
    _, seed, index, style = item.image.split("/", 3)
    return generate_scene(scene_rng("test", int(index), int(seed)), replace(WORLDS["test"], style=style)).image


def evaluate_playground(predictor: FerretPredictor, scenes: int, batch_size: int = 32) -> Scores:
    """Asks about the first scenes of the test split, and scores, in memory: nothing is kept."""
    predict = predict_with(ask_here(predictor, playground_picture, batch_size), at_a_time=2 * batch_size)
    return score(BENCHMARK, chain.from_iterable(predict(list(playground_items(scenes)), BENCHMARK.max_new_tokens)))


def _findings(prediction: Prediction) -> Iterator[tuple[str, bool]]:
    """Every figure that the answer counts in, and whether it is right there; some several times, as captioned objects."""
    item, answer = prediction.item, prediction.answer or ""
    kind, expected = item.expected["kind"], item.expected["answer"]
    same_words = without_boxes(answer) == without_boxes(expected)
    given, wanted = find_spans(answer, item.space), find_spans(expected, item.space)
    if kind.startswith("locate"):
        same_boxes = len(wanted) == len(given) and all(_same_place(a, b) for a, b in zip(wanted, given, strict=True))
    else:  # what is counted has no order
        same_boxes = len(wanted) == len(given) == len(_matches(wanted, given))
    if kind == "name":
        yield f"named ({item.regions[0].kind})", same_words
    elif kind in _LOCATED and wanted:
        yield "located", same_boxes
        yield _LOCATED[kind], same_boxes
    elif kind == "describe":
        yield "described (every word)", same_words
        matches = _matches(wanted, given)
        for number in range(len(given)):
            yield "captioned objects", number in matches.values()
        for number in range(len(wanted)):
            yield "objects in captions", number in matches
    else:
        yield "found absent" if kind in _LOCATED else kind.replace("_", " "), same_words
    if expected.startswith(("Yes", "No,")):
        yield "yes or no", answer.split(",")[0] == expected.split(",")[0]
    if wanted and same_words:
        yield "boxes of right answers", same_boxes


def _matches(wanted: Sequence[Span], given: Sequence[Span]) -> dict[int, int]:
    """Which given span is which wanted one, by their numbers: the same thing at the same place, each once."""
    found: dict[int, int] = {}
    for j, span in enumerate(given):
        same = (i for i, w in enumerate(wanted) if i not in found and _thing(w) == _thing(span) and _same_place(w, span))
        if (i := next(same, None)) is not None:
            found[i] = j
    return found


def _same_place(a: Span, b: Span) -> bool:
    return box_iou(a.box, b.box) >= SAME_PLACE


def _thing(span: Span) -> Thing | None:
    """What a phrase names: "a dog", "two dogs", "bread"."""
    without_article = span.phrase.partition(" ")[2]
    return NAMED.get(span.phrase) or NAMED.get(without_article)


def _called(answer: str, item: Item) -> str:
    """The name that an answer gives, or all its words if it names nothing."""
    named = [thing.name for span in find_spans(answer, item.space) if (thing := _thing(span))]
    return named[0] if named else without_boxes(answer)
