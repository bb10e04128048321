"""Spatial negative mining (paper section 4.3): questions whose answer is no, each with a twin whose answer is yes.

* Image-conditioned (`presence`): a class that annotators looked for and did not find in this picture.
* Semantics-conditioned: something true of the picture, made false: a look-alike (`verify`), another colour
  (`attribute`), one more or less (`count`), the opposite relation (`relation`), one word of a description (`phrase`).

A no is only asked where the annotations prove it; each task yields pairs, so that yes and no are equally many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import Protocol

from ferret_core.data.build.scene import Scene, list_boxes
from ferret_core.data.build.tasks import MOST_FOUND, Exchange, how_many, region, shuffled, two_names
from ferret_core.data.build.templates import answer, ask
from ferret_core.data.build.words import (
    COLORS,
    OPPOSITES,
    countable,
    counted,
    indefinite,
    is_plural,
    lookalikes,
    may_be,
    verb,
    word_foils,
)
from ferret_core.geometry import Box
from ferret_core.prompt import Turn


class Foils(Protocol):
    """False versions of words that are true of something."""

    def of_name(self, name: str) -> Sequence[str]:
        """Of "dog": "cat"."""

    def of_phrase(self, phrase: str) -> Sequence[str]:
        """Of "a black dog": "a white dog"."""


class BuiltInFoils:
    """By the word lists."""

    def of_name(self, name: str) -> Sequence[str]:
        """Its look-alikes."""
        return lookalikes(name)

    def of_phrase(self, phrase: str) -> Sequence[str]:
        """The phrase with one word changed."""
        return word_foils(phrase)


Negative = Callable[[Scene, Random, Foils], Iterator[Exchange]]

MOST_COUNTED = 9


def presence(scene: Scene, rng: Random, foils: Foils) -> Iterator[Exchange]:
    """Is there a cat? No, there is no cat. Is there a dog? Yes, there is a dog [box0]."""
    present = [label for label, found in scene.by_name.items() if any(scene.objects[i].pointable for i in found)]
    alike = {other for label in present for other in lookalikes(label)}
    # Half of the look-alikes come first: they are the harder questions.
    checked = sorted(dict.fromkeys(scene.checked), key=lambda label: rng.random() - (label in alike and rng.random() < 0.5))
    absent = (label for label in checked if scene.lacks(label))
    for no, yes in zip(absent, shuffled(present, rng), strict=False):
        yield (
            Turn(_is_there(no, rng), answer("presence_no", rng, name=no, verb=verb(no))),
            Turn(_is_there(yes, rng), answer("presence_yes", rng, **_known(scene, yes))),
        )


def verify(scene: Scene, rng: Random, foils: Foils) -> Iterator[Exchange]:
    """Is [region0] a cat? No, it is a dog [box0]. And of the same object: is it a dog? Yes."""
    for i in shuffled([i for i, each in enumerate(scene.objects) if each.name and each.pointable], rng):
        label = scene.objects[i].name
        options = [foil for foil in foils.of_name(label) if not may_be(label, foil)]
        if options and not is_plural(label):
            yield _twins("verify", i, label, rng.choice(options), rng)


def attribute(scene: Scene, rng: Random, foils: Foils) -> Iterator[Exchange]:
    """Is [region0] a white dog? No, it is a black dog. Only for things of one colour."""
    for i in shuffled([i for i, each in enumerate(scene.objects) if each.name and each.pointable], rng):
        label, colors = scene.objects[i].name, [word for word in scene.objects[i].attributes if word in COLORS]
        several = any(
            " and " in word or word in ("striped", "colorful", "multicolored") for word in scene.objects[i].attributes
        )
        if len(colors) == 1 and not several and not is_plural(label) and not set(label.split()) & COLORS.keys():
            yield _twins("verify", i, f"{colors[0]} {label}", f"{rng.choice(COLORS[colors[0]])} {label}", rng)


def count(scene: Scene, rng: Random, foils: Foils) -> Iterator[Exchange]:
    """Are there three dogs? No, there are two dogs [box0] [box1]. Only where all are known."""
    for label in shuffled(list(scene.by_name), rng):
        everyone = scene.all_of(label)
        if everyone and len(everyone) <= min(MOST_COUNTED, MOST_FOUND) and countable(label):
            true = len(everyone)
            false = rng.choice([number for number in (true - 1, true + 1) if number])
            words = how_many(label, everyone)
            yield (
                Turn(_count_of(false, label, rng), answer("count_no", rng, **words)),
                Turn(_count_of(true, label, rng), answer("count_yes", rng, **words)),
            )


def relation(scene: Scene, rng: Random, foils: Foils) -> Iterator[Exchange]:
    """Is [region0] behind [region1]? No, the dog [box0] is in front of the car [box1]. Annotated, or plain from the boxes."""
    stated = {(each.subject, each.object, each.predicate) for each in scene.relations}
    known = [each for each in sorted(stated) if each[2] in OPPOSITES and (*each[:2], OPPOSITES[each[2]]) not in stated]
    related = {pair for i, j, _ in known for pair in ((i, j), (j, i))}
    named = shuffled([i for i, each in enumerate(scene.objects) if each.name and each.pointable], rng)
    for i, j in pairwise(named):
        place = side(scene.objects[i].box, scene.objects[j].box)
        if place and (i, j) not in related:
            known.append((i, j, place))
    for i, j, predicate in shuffled(known, rng):
        if scene.objects[i].pointable and scene.objects[j].pointable:
            words = two_names(scene, i, j) | {"predicate": predicate}
            places = {"region": region(i), "other": region(j)}
            yield (
                Turn(ask("relation", rng, **places, predicate=OPPOSITES[predicate]), answer("relation_no", rng, **words)),
                Turn(ask("relation", rng, **places, predicate=predicate), answer("relation_yes", rng, **words)),
            )


def phrase(scene: Scene, rng: Random, foils: Foils) -> Iterator[Exchange]:
    """Does "a white dog" describe [region0]? No, it is rather "a black dog"."""
    said: dict[int, set[str]] = {}
    for each in scene.descriptions:
        said.setdefault(each.object, set()).add(each.text.lower())
    for each in shuffled(scene.descriptions, rng):
        # What somebody else said of the same object is true, however much it looks like a foil.
        options = [foil for foil in foils.of_phrase(each.text) if foil.lower() not in said[each.object]]
        if options and scene.objects[each.object].pointable:
            place = region(each.object)
            yield (
                Turn(ask("phrase", rng, region=place, text=rng.choice(options)), answer("phrase_no", rng, text=each.text)),
                Turn(ask("phrase", rng, region=place, text=each.text), answer("phrase_yes", rng, text=each.text)),
            )


NEGATIVES: dict[str, Negative] = {task.__name__: task for task in (presence, verify, attribute, count, relation, phrase)}


def side(a: Box, b: Box) -> str | None:
    """Where `a` lies as seen from `b`, if the boxes leave no doubt: they do not overlap along exactly one axis."""
    across, down = _side(a.x1, a.x2, b.x1, b.x2, "to the left of"), _side(a.y1, a.y2, b.y1, b.y2, "above")
    return None if across and down else across or down


def _side(a1: float, a2: float, b1: float, b2: float, before: str) -> str | None:
    if a2 <= b1:
        return before
    return OPPOSITES[before] if b2 <= a1 else None


def _twins(kind: str, i: int, true: str, false: str, rng: Random) -> Exchange:
    words = {"a_name": indefinite(true), "region_box": f"the object {list_boxes([i])}"}
    return (
        Turn(ask(kind, rng, region=region(i), a_name=indefinite(false)), answer(f"{kind}_no", rng, **words)),
        Turn(ask(kind, rng, region=region(i), a_name=indefinite(true)), answer(f"{kind}_yes", rng, **words)),
    )


def _count_of(number: int, label: str, rng: Random) -> str:
    return ask("count", rng, counted=counted(number, label), are="is" if number == 1 else "are")


def _is_there(label: str, rng: Random) -> str:
    return ask("presence_plural" if is_plural(label) else "presence", rng, name=label, a_name=indefinite(label))


def _known(scene: Scene, label: str) -> dict[str, str]:
    """What is there: all of it if that is known, else one of it."""
    everyone = scene.all_of(label)
    if everyone and 1 < len(everyone) <= MOST_FOUND and countable(label):
        return how_many(label, everyone) | {"known": counted(len(everyone), label)}
    largest = max(scene.by_name[label], key=lambda i: scene.objects[i].box.area)
    return {"known": indefinite(label), "are": verb(label), "boxes": list_boxes([largest])}
