"""Playground examples: a scene with a conversation about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ferret_core.data.playground.questions import KINDS, Interview
from ferret_core.data.playground.scenes import WORLDS, Scene, Split, generate_scene, scene_rng
from ferret_core.data.playground.styles import MIXED, STYLES
from ferret_core.data.pointing import GESTURES, Gesture
from ferret_core.data.records import Object, Record
from ferret_core.geometry import Region
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

    @property
    def regions(self) -> dict[int, Region]:
        """What the questions point at, by number."""
        return {number: region for number, region in enumerate(self.record.regions) if not isinstance(region, Object)}


def playground_example(
    split: Split,
    index: int,
    num_turns: int = 6,
    kinds: Sequence[str] = tuple(KINDS),
    gestures: Sequence[Gesture] = GESTURES,
    style: str | Path | None = None,
    seed: int = 0,
) -> Example:
    """Scene `index` of a split with a conversation of at most `num_turns` turns.

    Raises `ValueError` if there is no such style.

    Args:
        split: which scenes; no scene is in two splits.
        index: which scene.
        num_turns: how many questions; fewer if the scene does not lend itself to the kinds asked for.
        kinds: the kinds of questions to choose from, by their relative frequency in `KINDS`.
        gestures: the ways of pointing to choose from.
        style: how things are drawn, if not as the split's are (see `World.style`).
        seed: another one makes other scenes.
    """
    return next(playground_examples(split, index, [(num_turns, kinds, gestures)], style, seed))


def playground_examples(
    split: Split,
    index: int,
    conversations: Iterable[tuple[int, Sequence[str], Sequence[Gesture]]],
    style: str | Path | None = None,
    seed: int = 0,
) -> Iterator[Example]:
    """The same scene with one conversation after another, `(num_turns, kinds, gestures)` each; it is drawn once."""
    world = WORLDS[split] if style is None else replace(WORLDS[split], style=style)
    rng = scene_rng(split, index, seed)
    scene = generate_scene(rng, world)
    for num_turns, kinds, gestures in conversations:
        interview = Interview(scene, deepcopy(rng), gestures, world.hard)
        turns, asked = _converse(interview, num_turns, kinds)
        record = Record(
            id=f"playground-{split}-{index}" + (f"-{seed}" if seed else ""),
            image=f"{split}/{index}.png",
            size=scene.size,
            turns=turns,
            regions=tuple(interview.regions),
            boxes=tuple(interview.boxes),
            dataset="playground",
            license="MIT" if world.style in (*STYLES, MIXED) else "",
            split=split,
        )
        yield Example(record, scene.image, asked, scene)


def _converse(interview: Interview, num_turns: int, kinds: Sequence[str]) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
    """Turns, and the kind of each."""
    weights = np.array([KINDS[kind] for kind in kinds])
    turns: list[Turn] = []
    asked: list[str] = []
    for _ in range(num_turns * _ATTEMPTS):
        if len(turns) == num_turns:
            break
        kind = kinds[interview.rng.choice(len(kinds), p=weights / weights.sum())]
        subject = interview.subject
        turn: Turn | None = getattr(interview, kind)()
        if turn and all(turn.question != earlier.question for earlier in turns):
            turns.append(turn)
            asked.append(kind)
        else:
            interview.subject = subject  # not asked: "it" still means what it meant
    return tuple(turns), tuple(asked)
