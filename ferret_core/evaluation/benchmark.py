"""What a benchmark is: questions, how an answer is graded, and the figures that grades add up to.

Asking and grading never meet: a `Prediction` carries its question and what was expected of it, so that a file of predictions
can be graded again, years later, without the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ferret_core.data.records import Object, region_from_json, region_to_json
from ferret_core.geometry import Box, ImageSize, Region

SAME_PLACE = 0.5
"""Least IoU of boxes that count as one."""
Tally = Mapping[str, float]
"""What one answer adds to the sums that figures are made of. A name that is not there adds nothing."""
Sums = Mapping[str, np.ndarray]
"""Sums of tallies by name, one for each resampling of the answers; a name that no answer has is 0 everywhere."""
Paper = Mapping[str, float]
"""A figure of the paper by model, as `{"7B": 0.8749, "13B": 0.8948}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A question about a picture, and what is right."""

    id: str
    """Different for every item of a benchmark."""
    group: str = ""
    """What is scored together, as a split: `refcoco testA`."""
    image: str = ""
    """The picture's path below the directory of pictures."""
    size: ImageSize | None = None
    """The picture's, in pixels; None if it is not known, where no place matters."""
    question: str = ""
    """Points at regions with `[region0]`, `[region1]`, ..."""
    regions: tuple[Region, ...] = ()
    """In pixels of the picture."""
    expected: Mapping[str, Any] = field(default_factory=dict)
    """What grading needs to know, as JSON. Boxes under `boxes` are drawn in the gallery."""

    @property
    def space(self) -> ImageSize:
        """The picture's size, where places matter. Raises `ValueError` if it is not known."""
        if self.size is None:
            raise ValueError(f"item {self.id}: has boxes or regions, but the size of its picture is not known")
        return self.size

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Expected boxes, in pixels of the picture."""
        return tuple(Box(*box) for box in self.expected.get("boxes", ()))

    def to_json(self) -> dict[str, Any]:
        """Fields of a row."""
        return {
            "id": self.id,
            "group": self.group,
            "image": self.image,
            "size": self.size and list(self.size),
            "question": self.question,
            "regions": [region_to_json(region) for region in self.regions],
            "expected": dict(self.expected),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Item:
        """The item of a row; what is not there is empty. Raises `KeyError`, `TypeError` or `ValueError` if it is none."""
        regions = [region_from_json(region) for region in value.get("regions", ())]
        return cls(
            id=str(value["id"]),
            group=str(value.get("group") or ""),
            image=value.get("image", ""),
            size=ImageSize(*map(int, value["size"])) if value.get("size") else None,
            question=value.get("question", ""),
            regions=tuple(region.box if isinstance(region, Object) else region for region in regions),
            expected=value.get("expected", {}),
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """An item and what was answered; None if there is no answer, which counts as wrong."""

    item: Item
    answer: str | None

    def to_json(self) -> dict[str, Any]:
        """A row."""
        return {**self.item.to_json(), "answer": self.answer}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Prediction:
        """The prediction of a row. Raises `KeyError`, `TypeError` or `ValueError` if it is none."""
        answer = value["answer"]
        if answer is not None and not isinstance(answer, str):
            raise TypeError(f"answer: must be text, got {answer!r}")
        return cls(Item.from_json(value), answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number of the report."""

    name: str
    value: Callable[[Sums], np.ndarray]
    """From sums of tallies; NaN where it is not defined."""
    of: str = ""
    """Name of the tally that says of how many questions, or whatever is counted, the figure is."""
    paper: Mapping[str, Paper] = field(default_factory=dict)
    """The paper's, by group."""
    target: float | None = None
    """What a checkpoint is held to."""
    percent: bool = True
    """Whether it is a share, from 0 to 1."""


def share(
    name: str, part: str, whole: str = "items", paper: Mapping[str, Paper] | None = None, target: float | None = None
) -> Figure:
    """The figure that is one sum divided by another."""
    return Figure(name=name, value=ratio(part, whole), of=whole, paper=paper or {}, target=target)


def ratio(part: str, whole: str) -> Callable[[Sums], np.ndarray]:
    """The value of a figure that is one sum divided by another; NaN if that is 0."""

    def value(sums: Sums) -> np.ndarray:
        return divide(sums[part], sums[whole])

    return value


def divide(part: np.ndarray, whole: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    """Quotients, element by element; `otherwise` where the divisor is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, otherwise), where=whole != 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """What predictions tell only together, as whether two answers about one object agree."""

    tallies: Mapping[str, Sequence[Tally]] = field(default_factory=dict)
    """By group: one for each thing that is drawn again for the intervals."""
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    """Paragraphs or tables for the report, in Markdown, as what could not be computed, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """How a kind of question is scored."""

    name: str
    """As in `ferret eval NAME`."""
    protocol: str
    """In words, for the report."""
    grade: Callable[[Prediction], Tally]
    """Never raises because of an answer: what cannot be read is wrong, and is counted."""
    figures: tuple[Figure, ...]
    counts: tuple[str, ...] = ()
    """Names of tallies that the report gives as they are, as `malformed`."""
    joint: Callable[[Sequence[Prediction]], Joint] | None = None
    """More figures, of predictions in the order of their ids; None if there are none."""
    quality: str
    """Name of the tally by which the gallery finds the worst answers."""
    max_new_tokens: int = 128

    def tally(self, prediction: Prediction) -> Tally:
        """The grade. Raises `ValueError` naming the item, if it is not a question of this benchmark."""
        try:
            return self.grade(prediction)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"item {prediction.item.id}: is not a question of {self.name}: {error!r}") from error
