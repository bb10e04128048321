"""POPE: is an object there that is not? Accuracy, precision, recall, F1 and the share of yes, "yes" being positive.

`Is there a dog in the image?` The published protocol reads the text up to the first period, without commas, and says no if
`no`, `No` or `not` is one of its words, which only single spaces divide; all else is yes, nonsense and silence included.
`strict` reads the first word: what is neither yes nor no is wrong.

Questions are POPE's own files (`coco_pope_random.json`, ...), or built from COCO's annotations as POPE's were: of each picture
as many objects that are there as such that are not, in turn. What is asked for and is not there is

* random: any class that is not in the picture;
* popular: the classes that are in most pictures;
* adversarial: the classes that are most often in pictures with the object that was just asked for.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ferret_core.data.build.coco import CocoFile
from ferret_core.data.build.reading import Problems, Request, lines
from ferret_core.data.build.scene import Scene
from ferret_core.data.build.words import indefinite, verb
from ferret_core.evaluation.benchmark import Benchmark, Figure, Item, Paper, Prediction, Sums, Tally, divide, share

SAMPLINGS = ("random", "popular", "adversarial")
_NO = {"no", "No", "not"}

_PAPER = {  # of 13B: accuracy, precision, recall, F1, yes
    "random": (0.9024, 0.9772, 0.8300, 0.8976, 0.4326),
    "popular": (0.8490, 0.8824, 0.8053, 0.8421, 0.4563),
    "adversarial": (0.8236, 0.8360, 0.8053, 0.8200, 0.4818),
}


def says_yes(answer: str) -> bool:
    """As the published protocol reads an answer."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not _NO.intersection(words)


def grade(prediction: Prediction) -> Tally:
    """A true or false positive or negative; and the same, strictly. No answer is a wrong one."""
    there = prediction.item.expected["label"] == "yes"
    if prediction.answer is None:
        yes, word = not there, ""
    else:
        yes = says_yes(prediction.answer)
        word = (re.match(r"\W*(\w*)", prediction.answer.lower()) or [""])[1]
    tally = {"items": 1.0, "yes": float(yes), f"{'true' if yes == there else 'false'} {'yes' if yes else 'no'}": 1.0}
    tally["right"] = float(yes == there)
    tally["strict"] = float(word == ("yes" if there else "no"))
    tally["neither yes nor no"] = float(word not in ("yes", "no"))
    return tally


def _precision(sums: Sums) -> np.ndarray:
    return divide(sums["true yes"], sums["true yes"] + sums["false yes"])


def _recall(sums: Sums) -> np.ndarray:
    return divide(sums["true yes"], sums["true yes"] + sums["false no"])


def _f1(sums: Sums) -> np.ndarray:
    return divide(2 * sums["true yes"], 2 * sums["true yes"] + sums["false yes"] + sums["false no"])


def _paper(figure: int) -> dict[str, Paper]:
    return {sampling: {"13B, unconfirmed": figures[figure]} for sampling, figures in _PAPER.items()}


BENCHMARK = Benchmark(
    name="pope",
    protocol="An answer says no if `no`, `No` or `not` is a word of it before the first period, and yes otherwise. "
    "`strict` reads the first word, and what is neither yes nor no is wrong. Precision is not defined for who never says yes.",
    grade=grade,
    figures=(
        share("accuracy", "right", paper=_paper(0)),
        Figure(name="precision", value=_precision, paper=_paper(1)),
        Figure(name="recall", value=_recall, paper=_paper(2)),
        Figure(name="F1", value=_f1, paper=_paper(3)),
        share("yes ratio", "yes", paper=_paper(4)),
        share("accuracy, strict", "strict"),
    ),
    counts=("true yes", "false yes", "true no", "false no", "neither yes nor no"),
    quality="right",
    max_new_tokens=64,
)


def read_pope(path: Path, group: str = "") -> Iterator[Item]:
    """Items of a file of questions, JSON lines with question_id, image, text and label.

    Args:
        path: the file.
        group: what it is called in the report; by default what follows the last `_` in its name.

    Raises:
        ValueError: naming the line that is broken.
    """
    problems = Problems()
    group = group or path.stem.rpartition("_")[2]
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        with problems.at(f"{path}: line {number}"):
            row = json.loads(line)
            if row["label"] not in ("yes", "no"):
                raise ValueError(f"label: must be yes or no, got {row['label']!r}")
            yield Item(
                id=str(row["question_id"]),
                group=group,
                image=row["image"],
                question=row["text"],
                expected={"label": row["label"]},
            )


def read_scenes(root: Path) -> Iterator[Scene]:
    """Pictures of COCO's validation split: of 2014, as POPE's are, or of 2017 if only that is there."""
    file = CocoFile(Request(root), "instances_val2014.json", "instances_val2017.json")
    return (scene for scene, _, _ in file.scenes(checked=tuple(file.categories.values())))


def build_pope(
    scenes: Iterable[Scene], sampling: str, *, images: int = 500, per_image: int = 6, seed: int = 0
) -> Iterator[Item]:
    """Questions about pictures whose objects are all known, COCO's.

    Args:
        scenes: pictures with their objects; `checked` are the classes that were looked for.
        sampling: which objects that are not there are asked for.
        images: how many pictures, chosen at random among those with at least `per_image // 2` classes.
        per_image: questions about each; half of them with the answer yes.
        seed: of every choice.

    Raises:
        ValueError: too few pictures have as many classes, or there is no such sampling.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(f"--sampling: must be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    if per_image < 2 or per_image % 2:
        raise ValueError(f"--per-image: must be even, half of it with the answer yes, got {per_image}")
    half = per_image // 2
    scenes = list(scenes)
    present = [sorted(scene.by_name) for scene in scenes]
    frequency = Counter(name for names in present for name in names)
    together: dict[str, Counter[str]] = {name: Counter() for name in frequency}
    for names in present:
        for name in names:
            together[name].update(names)
    rng = random.Random(seed)
    usable = [
        (scene, names)
        for scene, names in zip(scenes, present, strict=True)
        if len(names) >= half and len(set(filter(scene.lacks, scene.checked))) >= half
    ]
    if len(usable) < images:
        raise ValueError(
            f"only {len(usable)} pictures have {half} classes that are there and {half} that are not; --images {images}"
        )
    for scene, names in rng.sample(usable, images):
        shown = rng.sample(names, half)
        absent = set(filter(scene.lacks, scene.checked))
        asked: list[str] = []
        for name in shown:
            left = sorted(absent.difference(asked))
            rng.shuffle(left)  # a tie is decided by chance, not by the alphabet
            if sampling != "random":
                count = frequency if sampling == "popular" else together[name]
                left.sort(key=lambda other: -count[other])
            asked.append(left[0])
        in_turn = [pair for yes, no in zip(shown, asked, strict=True) for pair in ((yes, "yes"), (no, "no"))]
        for number, (name, label) in enumerate(in_turn):
            yield Item(
                id=f"{sampling}-{scene.id}-{number}",
                group=sampling,
                image=scene.image,
                size=scene.size,
                question=f"{verb(name).capitalize()} there {indefinite(name)} in the image?",
                expected={"label": label, "object": name},
            )
