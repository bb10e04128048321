"""Playground examples: a scene with a conversation about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ferret_core.data.playground.questions import KINDS, Interview
from ferret_core.data.playground.scenes import Scene, Split, generate_scene, scene_rng
from ferret_core.data.pointing import GESTURES, Gesture
from ferret_core.data.records import Record
from ferret_core.prompt import Turn

_ATTEMPTS = 4  # to find a question, for each that is wanted


@dataclass(frozen=True, slots=True)
class Example:
    """A record and its picture in memory."""

    record: Record
    image: Image.Image
    kinds: tuple[str, ...]
    """The kind of each question, a key of `KINDS`."""
    scene: Scene


def playground_example(
    split: Split,
    index: int,
    num_turns: int = 6,
    kinds: Sequence[str] = tuple(KINDS),
    gestures: Sequence[Gesture] = GESTURES,
) -> Example:
    """Scene `index` of a split with a conversation of at most `num_turns` turns.

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
    weights = np.array([KINDS[kind] for kind in kinds])
    turns: list[Turn] = []
    asked: list[str] = []
    for _ in range(num_turns * _ATTEMPTS):
        if len(turns) == num_turns:
            break
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        subject = interview.subject
        turn: Turn | None = getattr(interview, kind)()
        if turn and all(turn.question != earlier.question for earlier in turns):
            turns.append(turn)
            asked.append(kind)
        else:
            interview.subject = subject  # not asked: "it" still means what it meant
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
