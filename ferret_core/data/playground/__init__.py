"""The playground: a small picture world in which a small Ferret can refer and ground.

example = playground_example("test", 7)      # a Record and its picture, a function of (split, index)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ferret_core.data.playground.objects import CATEGORIES, THINGS, Thing
from ferret_core.data.playground.questions import KINDS, Interview
from ferret_core.data.playground.scenes import SPLITS, Scene, SceneObject, generate_scene, scene_rng
from ferret_core.data.pointing import GESTURES, Gesture
from ferret_core.data.records import Record
from ferret_core.prompt import Turn

__all__ = [
    "CATEGORIES",
    "GESTURES",
    "KINDS",
    "SPLITS",
    "THINGS",
    "Example",
    "Interview",
    "Scene",
    "SceneObject",
    "Thing",
    "generate_scene",
    "playground_example",
    "scene_rng",
]


@dataclass(frozen=True, slots=True)
class Example:
    """A record and its picture in memory."""

    record: Record
    image: Image.Image
    kinds: tuple[str, ...]
    """The kind of each question, a key of `KINDS`."""
    scene: Scene


def playground_example(
    split: str,
    index: int,
    num_turns: int = 6,
    kinds: Sequence[str] = tuple(KINDS),
    gestures: Sequence[Gesture] = GESTURES,
) -> Example:
    """Scene `index` of a split ("train", "validation", "test") with a conversation of at most `num_turns` turns.

    Args:
        split: which scenes; no scene is in two splits.
        index: which scene.
        num_turns: how many questions; fewer if the scene does not lend itself to the kinds asked for.
        kinds: the kinds of questions to choose from, by their relative frequency in `KINDS`.
        gestures: the ways of pointing to choose from.
    """
    rng = scene_rng(split, index)
    scene = generate_scene(rng)
    interview = Interview(scene, rng, gestures)
    weights = np.array([KINDS[kind][1] for kind in kinds])
    turns: list[Turn] = []
    asked: list[str] = []
    for _ in range(num_turns * 4):
        if len(turns) == num_turns:
            break
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        subject = interview.subject
        turn = KINDS[kind][0](interview)
        if turn and turn.question not in {t.question for t in turns}:
            turns.append(turn)
            asked.append(kind)
        else:
            interview.subject = subject
    record = Record(
        id=f"playground-{split}-{index}",
        image=f"{split}/{index}.png",
        size=scene.size,
        turns=tuple(turns),
        regions=tuple(interview.regions),
        boxes=tuple(interview.boxes),
        dataset="playground",
        license="MIT",
        split=split,
    )
    return Example(record, scene.image, tuple(asked), scene)
