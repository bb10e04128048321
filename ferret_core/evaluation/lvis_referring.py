"""Referring object classification on LVIS: a region is one of two classes. Points, boxes and free forms.

`Is the object [region0] a cat or a dog?` The paper's protocol looks for the right class's name anywhere in the answer, inside
words, too ("cat" in "caterpillar"). `strict` asks for the whole word, and that the other class is not named.

Questions are built from LVIS's annotations: objects of every class in turn, so that rare classes count as much as common ones;
beside the object's class, one that is known not to be in the picture; the right one first and second in turn. The same objects
are asked about with a point inside the mask, the annotated box, and a stroke within the mask.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import zip_longest

import numpy as np

from ferret_core.data.build.reading import Problems
from ferret_core.data.build.scene import Scene, to_region
from ferret_core.data.pointing import point_at
from ferret_core.evaluation.benchmark import Benchmark, Item, Paper, Prediction, Tally, share
from ferret_core.evaluation.names import says
from ferret_core.geometry import Mask, Region

FORMS = ("point", "box", "free form")
PAPER: dict[str, Paper] = {
    "point": {"7B": 0.6794, "13B": 0.6835},
    "box": {"7B": 0.7942, "13B": 0.8046},
    "free form": {"7B": 0.6977, "13B": 0.7098},
}


def grade(prediction: Prediction) -> Tally:
    """Whether the right class is named, and whether the other one is."""
    answer, expected = (prediction.answer or "").lower(), prediction.item.expected
    right, wrong = expected["right"].lower(), expected["wrong"].lower()
    named, other = says(answer, right), says(answer, wrong)
    return {
        "items": 1.0,
        "right": float(right in answer),
        "strict": float(named and not other),
        "neither class": float(right not in answer and wrong not in answer),
        "both classes": float(right in answer and wrong in answer),
    }


BENCHMARK = Benchmark(
    name="lvis",
    protocol="An answer is right if it holds the name of the right class, inside a word, too. strict: as a whole word, and the "
    "other class is not named.",
    grade=grade,
    figures=(
        share("accuracy", "right", paper=PAPER),
        share("accuracy, strict", "strict"),
    ),
    counts=("neither class", "both classes"),
    quality="right",
    max_new_tokens=64,
)


def question(first: str, second: str) -> str:
    """The paper's question about `[region0]`."""
    return f"Is the object [region0] a {first} or a {second}?"


def build_lvis(scenes: Iterable[Scene], objects: int = 2667, seed: int = 0, problems: Problems | None = None) -> Iterator[Item]:
    """Questions about objects with masks, each once for every way of pointing.

    Args:
        scenes: pictures with their objects; `checked` are the classes that were looked for.
        objects: how many objects.
        seed: of every choice.
        problems: objects that may be left out because their mask is broken; none by default.

    Raises:
        ValueError: there are fewer objects that have a class beside them that is known to be absent.
    """
    problems, rng = problems or Problems(), random.Random(seed)
    by_class: dict[str, list[tuple[Scene, int]]] = {}
    for scene in scenes:
        for i, item in enumerate(scene.objects):
            if item.name and item.segmentation:
                by_class.setdefault(item.name, []).append((scene, i))
    for members in by_class.values():
        rng.shuffle(members)
    in_turn = (each for layer in zip_longest(*(by_class[name] for name in sorted(by_class))) for each in layer if each)
    asked = 0
    for scene, i in in_turn:
        absent = sorted(filter(scene.lacks, set(scene.checked)))
        if asked == objects or not absent:
            continue
        with problems.at(f"object {i} of picture {scene.id}"):
            item = scene.objects[i]
            mask = to_region(item, scene.size).mask
            if mask is None:
                continue
            wrong = rng.choice(absent)
            order = (item.name, wrong) if asked % 2 == 0 else (wrong, item.name)
            for form, region in _regions(mask, item.box, seed + asked).items():
                yield Item(
                    id=f"{form}-{scene.id}-{i}",
                    group=form,
                    image=scene.image,
                    size=scene.size,
                    question=question(*order),
                    regions=(region,),
                    expected={"right": item.name, "wrong": wrong},
                )
            asked += 1
    if asked < objects:
        raise ValueError(f"only {asked:,} objects have a mask and a class that is known to be absent; --objects {objects}")


def _regions(mask: Mask, box: Region, seed: int) -> dict[str, Region]:
    """An object as point, box and free form; the free form is a stroke that does not leave the object."""
    rng = np.random.default_rng(seed)
    pixels = mask.to_mask(mask.size)
    stroke = point_at(pixels, "scribble", rng).to_mask(mask.size) & pixels
    return {"point": point_at(pixels, "point", rng), "box": box, "free form": Mask.from_array(stroke)}
