"""Beyond the paper: does it matter how one points, and are referring and grounding of one mind?

* robustness: the same object as point, box, scribble, polygon and mask, and as boxes whose sides are off by up to 10, 20 and
  40 % of its width and height. `What is [region0]?` is right if the answer has the object's name, as whole words. Answers
  agree if they give the object one name, right or wrong: that is asked of all ways together and of ways two by two.
* round trip: of an object that is the only one of its name, `What is [region0]?`, and then `Where is the NAME?` with the name
  that was answered. The second answer's first box is compared with the box that was pointed at, whether the name was right or
  not: that is a figure of its own.

Both run on the playground, whose scenes are a function of their index, and on COCO or LVIS.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from ferret_core.data.build.scene import Scene, SceneObject, to_region
from ferret_core.data.build.words import verb
from ferret_core.data.playground import WORLDS, generate_scene, scene_rng
from ferret_core.data.pointing import GESTURES, point_at
from ferret_core.evaluation.benchmark import SAME_PLACE, Benchmark, Item, Joint, Prediction, Tally, share
from ferret_core.evaluation.names import name_in, says
from ferret_core.evaluation.playground import picture_name
from ferret_core.geometry import Box, ImageSize, Mask, Region, box_iou
from ferret_core.grounding import find_spans

INEXACT = {f"box, off by up to {jitter:.0%}": jitter for jitter in (0.1, 0.2, 0.4)}
COMPARED: dict[str, tuple[str, ...]] = {
    "all ways": (*GESTURES, *INEXACT),
    "all gestures": GESTURES,
    **{f"{a} and {b}": (a, b) for a, b in combinations(GESTURES, 2)},
    **{f"box and {inexact}": ("box", inexact) for inexact in INEXACT},
}
"""Ways of pointing whose answers are compared, by what they are called in the report."""
NAME = "What is [region0]?"


def grade_name(prediction: Prediction) -> Tally:
    """Whether the object's name is answered, or no name at all."""
    answer, item = prediction.answer or "", prediction.item
    return {
        "items": 1.0,
        "right": float(says(answer, item.expected["name"])),
        "no name": float(not name_in(answer, item.space)),
    }


def grade_trip(prediction: Prediction) -> Tally:
    """How near the box of the name that was answered is to the one that was pointed at."""
    item = prediction.item
    (right,) = item.boxes
    spans = find_spans(prediction.answer or "", item.space)
    iou = box_iou(spans[0].box, right) if spans else 0.0
    named = float(says(item.expected["answer"], item.expected["name"]))
    back = float(iou >= SAME_PLACE)
    return {"items": 1.0, "IoU": iou, "back": back, "named": named, "named and back": named * back, "without a box": not spans}


def agreement(predictions: Sequence[Prediction]) -> Joint:
    """Whether answers about one object, pointed at in different ways, give it the same name; none at all is never the same."""
    named: dict[str, dict[str, str]] = defaultdict(dict)
    for each in predictions:
        thing = each.item.id.removesuffix(f"-{each.item.group}")
        named[thing][each.item.group] = name_in(each.answer or "", each.item.space).lower()
    tallies: dict[str, list[Tally]] = {}
    for name, ways in COMPARED.items():
        answers = [{names[way] for way in ways} for names in named.values() if names.keys() >= set(ways)]
        if answers:
            tallies[name] = [{"objects": 1.0, "same": float(len(said) == 1 and said != {""})} for said in answers]
    return Joint(tallies=tallies, figures=(share("same name", "same", "objects"),))


ROBUSTNESS = Benchmark(
    name="robustness",
    protocol="The same objects, pointed at in different ways. named: the answer has the object's name, as whole words. "
    "same name: the answers about an object give it one name, right or wrong.",
    grade=grade_name,
    figures=(share("named", "right"),),
    counts=("no name",),
    joint=agreement,
    quality="right",
    max_new_tokens=64,
)

NAMES = replace(
    ROBUSTNESS,
    name="roundtrip-names",
    protocol="The first half of a round trip: what is in the box? named: the answer has the object's name, as whole words.",
    joint=None,
)

ROUND_TRIP = Benchmark(
    name="roundtrip",
    protocol="An object is named from its box, and then located by the name that was answered; objects that got no name are "
    "left out. Back: the first box has an IoU of at least 0.5 with the one that was pointed at.",
    grade=grade_trip,
    figures=(
        share("back", "back"),
        share("mean IoU", "IoU"),
        share("named right", "named"),
        share("back, of those named right", "named and back", "named"),
    ),
    counts=("without a box",),
    quality="IoU",
    max_new_tokens=64,
)


def robustness_items(scenes: Iterable[Scene], seed: int = 0) -> Iterator[Item]:
    """Every object with a name and a mask, pointed at in every way."""
    for scene in scenes:
        for number, thing in enumerate(scene.objects):
            mask = to_region(thing, scene.size).mask if thing.name and thing.segmentation and thing.pointable else None
            if mask is None:
                continue
            rng = np.random.default_rng([seed, number, *scene.id.encode()])
            pixels = mask.to_mask(scene.size)
            regions: dict[str, Region] = {gesture: point_at(pixels, gesture, rng) for gesture in GESTURES}
            regions |= {way: jittered(thing.box, jitter, scene.size, rng) for way, jitter in INEXACT.items()}
            for form, region in regions.items():
                yield _item(
                    scene, number, form, region, {"name": thing.name, "boxes": [list(thing.box.coordinates(scene.size))]}
                )


def round_trip_items(scenes: Iterable[Scene]) -> Iterator[Item]:
    """Every object that is the only one of its name, pointed at by its box."""
    for scene in scenes:
        for name, (number, *_) in scene.by_name.items():
            thing = scene.objects[number]
            if scene.only(name) is not None and thing.pointable:
                yield _item(scene, number, "box", thing.box, {"name": name, "boxes": [list(thing.box.coordinates(scene.size))]})


def trip_back(predictions: Iterable[Prediction]) -> list[Item]:
    """Where is what was answered? One question for each object that was given a name."""
    return [
        replace(
            each.item,
            question=f"Where {verb(name)} the {name}?",
            regions=(),
            expected={**each.item.expected, "answer": each.answer},
        )
        for each in predictions
        if (name := name_in(each.answer or "", each.item.space))
    ]


def jittered(box: Box, jitter: float, size: ImageSize, rng: np.random.Generator) -> Box:
    """The box with each side moved by up to `jitter`, less than 0.5, of its width or height, within the picture."""
    width, height = box.x2 - box.x1, box.y2 - box.y1
    moved = np.array(box.coordinates(size)) + rng.uniform(-jitter, jitter, 4) * [width, height, width, height]
    return Box(*(round(float(value), 1) for value in moved)).clamp(size)


def playground_scenes(count: int, first: int = 0, seed: int = 0) -> Iterator[Scene]:
    """Scenes of the playground's test split; everything that is there is known."""
    for index in range(first, first + count):
        scene = generate_scene(scene_rng("test", index, seed), WORLDS["test"])
        objects = tuple(
            SceneObject(box=thing.box, name=thing.thing.name, segmentation=Mask.from_array(scene.mask_of(i)).to_coco())
            for i, thing in enumerate(scene.objects)
        )
        yield Scene(
            id=str(index), image=picture_name(index, seed), size=scene.size, objects=objects,
            checked=tuple({thing.name for thing in objects}),
        )  # fmt: skip


def _item(scene: Scene, number: int, form: str, region: Region, expected: dict) -> Item:
    return Item(
        id=f"{scene.id}-{number}-{form}", group=form, image=scene.image, size=scene.size, question=NAME, regions=(region,),
        expected=expected,
    )  # fmt: skip
