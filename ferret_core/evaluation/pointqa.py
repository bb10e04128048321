"""PointQA (Mani et al., 2020): questions that only a point makes answerable; as published, or built from annotations.

* local, LocalQA: `What color is the shirt?`, of one of several shirts that differ. Right: the answer has the word of the one
  pointed at, or a word that the data set merges with it, and no other shirt's.
* counting, LookTwiceQA: `How many of these are there?` Right: the first number of the answer, in figures or in words.

`exact` asks for the word or the number and nothing else, as the data set's own models answer, which choose from a list. Every
object has a point, its middle, and a box. Counting is also built from pictures in which every object of a class is marked,
COCO's and the playground's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ferret_core.data.build.reading import Problems, load_json
from ferret_core.data.build.scene import Scene, box_from
from ferret_core.data.build.words import NUMBERS, countable, plural
from ferret_core.evaluation.benchmark import Benchmark, Item, Prediction, Tally, share
from ferret_core.evaluation.names import says
from ferret_core.geometry import ImageSize, Point, Region
from ferret_core.grounding import without_boxes

KINDS = ("local", "counting")
FORMS = ("point", "box")
ASKED = ("obj", "super", "general")
"""How counting names what is counted: `cats`, `animals`, `these`."""
MERGED = {
    "gray": ("grey", "silver"), "brown": ("tan", "beige", "light brown"), "blue": ("light blue",), "yellow": ("gold", "blonde"),
    "round": ("circular",), "looking": ("watching",),
}  # fmt: skip
"""Words that LocalQA counts as one answer."""
_FILES = {"local": ("LocalQA", "localqa"), "counting": ("LookTwiceQA", "looktwiceqa")}
_NUMBER = re.compile(rf"\b(\d+(?:,\d{{3}})*|{'|'.join(NUMBERS[1:])})\b")


def grade(prediction: Prediction) -> Tally:
    """Whether the answer has the right word or number, and whether it is that alone."""
    text, expected = without_boxes(prediction.answer or "").lower(), prediction.item.expected
    right = str(expected["answer"])
    alone = " ".join(re.sub(r"[^\w ]", " ", text).split())
    if expected["kind"] == "counting":
        numbers = [number.replace(",", "") for number in _NUMBER.findall(text)]
        words = (right, *NUMBERS[int(right) : int(right) + 1])
        return {
            "items": 1.0,
            "right": float(bool(numbers) and numbers[0] in words),
            "exact": float(alone in words),
            "without a number": float(not numbers),
        }
    named, other = _names(text, right), any(_names(text, each) for each in expected["others"])
    return {
        "items": 1.0,
        "right": float(named and not other),
        "exact": float(alone in (right, *MERGED.get(right, ()))),
        "another's word": float(other),
    }


def _names(text: str, word: str) -> bool:
    return any(says(text, each) for each in (word, *MERGED.get(word, ())))


BENCHMARK = Benchmark(
    name="pointqa",
    protocol="accuracy: of local questions, the answer has the right word and no other object's; of counting, its first number "
    "is right. exact: the answer is that word or number and nothing else.",
    grade=grade,
    figures=(
        share("accuracy", "right"),
        share("accuracy, exact", "exact"),
    ),
    counts=("another's word", "without a number"),
    quality="right",
    max_new_tokens=64,
)


def read_pointqa(
    root: Path,
    size_of: Callable[[str], ImageSize],
    kind: str = "local",
    split: str = "",
    form: str = "point",
    asked: str = "obj",
) -> Iterator[Item]:
    """Questions of the published files, `LocalQA` and `LookTwiceQA`; pictures are Visual Genome's, `NUMBER.jpg`.

    Args:
        root: the directory `Datasets` of the download.
        size_of: of a picture, in pixels: the files do not say it.
        kind: one of `KINDS`.
        split: `train`, `val`, `testdev` or `testfinal` of local questions, `train`, `val` or `test` of counting; by default the
            test split.
        form: how an object is pointed at, one of `FORMS`.
        asked: one of `ASKED`; local questions have one form.

    Raises:
        ValueError: naming the argument, the file or the question that is missing or broken.
    """
    for name, value, known in (("--kind", kind, KINDS), ("--form", form, FORMS), ("--asked", asked, ASKED)):
        if value not in known:
            raise ValueError(f"{name}: must be one of {', '.join(known)}, got {value!r}")
    folder, stem = _FILES[kind]
    split = split or ("testfinal" if kind == "local" else "test")
    paths = [root / folder / f"{stem}_{name}.json" for name in (f"{split}_imgs", "dataset")]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path} is not there; it is one of PointQA's published files, and --split part of its name")
    numbers, questions = map(load_json, paths)
    return _read(numbers, questions, paths[1], size_of, f"{kind} {split}", form, asked)


def _read(
    numbers: list, questions: dict, path: Path, size_of: Callable[[str], ImageSize], group: str, form: str, asked: str
) -> Iterator[Item]:
    problems = Problems()
    for number in map(str, numbers):
        with problems.at(f"{path}: picture {number}"):
            image = f"{number}.jpg"
            size = size_of(image)
            for i, question in enumerate(questions[number]):
                for j, (text, point, thing, expected) in enumerate(_asked(question, asked)):
                    box = box_from([thing[side] for side in "xywh"], size)
                    region: Region = Point(float(point["x"]), float(point["y"])) if form == "point" else box
                    yield Item(
                        id=f"{number}-{i}-{j}",
                        group=f"{group}, {form}",
                        image=image,
                        size=size,
                        question=text,
                        regions=(region,),
                        expected={**expected, "boxes": [list(box.coordinates(size))]},
                    )


def _asked(question: dict[str, Any], asked: str) -> Iterator[tuple[str, dict, dict, dict]]:
    """Text, point, object and what is expected, of every object of a published question."""
    if "points" in question:
        for point, thing in zip(question["points"], question["all_objs"], strict=True):
            others = sorted({*question["all_ans"]} - {point["ans"]})
            expected = {"kind": "local", "answer": point["ans"], "others": others}
            yield pointed(question["question"], thing["names"][0]), point, thing, expected
    else:
        expected = {"kind": "counting", "answer": str(int(question["ans"]))}
        yield counting(question[f"{asked}_question"]), question["point"], question["bbox"], expected


def pointed(question: str, name: str) -> str:
    """The question with `[region0]` after the name of the object, or at its end if that is not in it."""
    marked, found = re.subn(rf"(.*\b{re.escape(name)}\b)", r"\1 [region0]", question, count=1)
    return marked if found else f"{question.rstrip(' ?')} [region0]?"


def counting(question: str) -> str:
    """The question, and which object is meant."""
    return f"{question} One of them is [region0]."


def build_counting(scenes: Iterable[Scene], form: str = "point", seed: int = 0) -> Iterator[Item]:
    """`How many dogs are there?` of every class of which a picture has all objects marked; one of them is pointed at.

    Args:
        scenes: pictures with their objects; `checked` are the classes that were looked for.
        form: how it is pointed at, one of `FORMS`.
        seed: of which object it is.

    Raises:
        ValueError: there is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"--form: must be one of {', '.join(FORMS)}, got {form!r}")
    rng = random.Random(seed)
    for scene in scenes:
        for name in scene.by_name:
            members = [i for i in scene.all_of(name) or () if scene.objects[i].pointable]
            if not members or not countable(name):
                continue
            chosen = rng.choice(members)
            box = scene.objects[chosen].box
            middle = Point((box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2)
            yield Item(
                id=f"{scene.id}-{chosen}",
                group=f"counting, {form}",
                image=scene.image,
                size=scene.size,
                question=counting(f"How many {plural(name)} are there?"),
                regions=(middle if form == "point" else box,),
                expected={
                    "kind": "counting",
                    "answer": str(len(scene.by_name[name])),
                    "boxes": [list(scene.objects[i].box.coordinates(scene.size)) for i in scene.by_name[name]],
                },
            )
