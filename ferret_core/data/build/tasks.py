"""The paper's tasks (section 4.1 and 4.2): what there is to ask about a scene, and the answers.

A task yields exchanges, turns that belong together, in random order, as many as the scene has. Their texts speak of the
scene's objects by index: `[region3]` points at object 3, `[box3]` is its box. Nothing ambiguous is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TypeVar

from ferret_core.data.build.scene import Scene, list_boxes, without_mentions
from ferret_core.data.build.templates import answer, ask
from ferret_core.data.build.words import clause, countable, counted, indefinite, plural, verb
from ferret_core.prompt import Turn

Exchange = tuple[Turn, ...]
Task = Callable[[Scene, Random], Iterator[Exchange]]

MOST_FOUND = 15  # of one kind: a longer list of boxes is not asked for
_T = TypeVar("_T")


def name(scene: Scene, rng: Random) -> Iterator[Exchange]:
    """What is [region0]? A dog."""
    for i in shuffled([i for i, each in enumerate(scene.objects) if each.name and each.pointable], rng):
        label = scene.objects[i].name
        a_name = indefinite(label)
        yield (
            Turn(
                ask("name", rng, region=region(i)),
                answer("name", rng, a_name=a_name, A_name=sentence(a_name), boxes=list_boxes([i])),
            ),
        )


def locate(scene: Scene, rng: Random) -> Iterator[Exchange]:
    """Where is the dog? The dog is at [box0]. Only where nothing else could be meant."""
    for label in shuffled(list(scene.by_name), rng):
        i = scene.only(label)
        if i is not None and scene.objects[i].pointable:
            words = {"name": label, "verb": verb(label), "boxes": list_boxes([i])}
            yield (Turn(ask("locate", rng, **words), answer("locate", rng, **words)),)


def find(scene: Scene, rng: Random) -> Iterator[Exchange]:
    """Find all dogs. There are two dogs [box0] [box1]. Only where all are known."""
    for label in shuffled(list(scene.by_name), rng):
        everyone = scene.all_of(label)
        if everyone and len(everyone) <= MOST_FOUND and countable(label):
            yield (
                Turn(
                    ask("find", rng, names=plural(label), one=label),
                    answer("find", rng, **how_many(label, everyone)),
                ),
            )


def describe(scene: Scene, rng: Random) -> Iterator[Exchange]:
    """Describe [region0]. A dog with a red collar."""
    for each in shuffled(scene.descriptions, rng):
        if scene.objects[each.object].pointable:
            yield (Turn(ask("describe", rng, region=region(each.object)), answer("describe", rng, Text=sentence(each.text))),)


def refer(scene: Scene, rng: Random) -> Iterator[Exchange]:
    """Where is "the dog on the left"? [box0]. Only for words that refer to one thing."""
    for each in shuffled([each for each in scene.descriptions if each.refers], rng):
        words = {"text": each.text, "Text": sentence(each.text), "boxes": list_boxes([each.object])}
        yield (Turn(ask("refer", rng, **words), answer("refer", rng, **words)),)


def relate(scene: Scene, rng: Random) -> Iterator[Exchange]:
    """What is the relation between [region0] and [region1]? The man [box0] is riding the horse [box1]."""
    for each in shuffled(scene.relations, rng):
        subject, other = scene.objects[each.subject], scene.objects[each.object]
        if subject.pointable and other.pointable:
            yield (
                Turn(
                    ask("relate", rng, region=region(each.subject), other=region(each.object)),
                    answer(
                        "relate",
                        rng,
                        clause=clause(subject.name, each.predicate),
                        **two_names(scene, each.subject, each.object),
                    ),
                ),
            )


def caption(scene: Scene, rng: Random) -> Iterator[Exchange]:
    """Describe the image. A dog [box0] chases a ball [box1]. Without boxes where a caption has none, and it says so."""
    for text in shuffled(scene.captions, rng):
        kind = "caption" if without_mentions(text) != text else "plain_caption"
        yield (Turn(ask(kind, rng), answer(kind, rng, text=text)),)


def ground(scene: Scene, rng: Random) -> Iterator[Exchange]:
    """Locate the things in "A dog chases a ball". A dog [box0] chases a ball [box1]."""
    for text in shuffled(scene.captions, rng):
        plain = without_mentions(text)
        if plain != text:
            yield (Turn(ask("ground", rng, plain=plain), answer("ground", rng, text=text)),)


TASKS: dict[str, Task] = {task.__name__: task for task in (name, locate, find, describe, refer, relate, caption, ground)}


def shuffled(items: Sequence[_T], rng: Random) -> list[_T]:
    """A random order."""
    return rng.sample(items, len(items))


def region(i: int) -> str:
    """Points at object i."""
    return f"[region{i}]"


def sentence(text: str) -> str:
    """Begins with a capital and ends without a full stop, which the template has."""
    return (text[0].upper() + text[1:]).rstrip(" .")


def how_many(label: str, indices: Sequence[int]) -> dict[str, str]:
    """Words for a number of things, all of them: "two dogs"."""
    words = counted(len(indices), label)
    are = "is" if len(indices) == 1 else "are"
    return {"counted": words, "Counted": sentence(words), "are": are, "boxes": list_boxes(indices)}


def two_names(scene: Scene, i: int, j: int) -> dict[str, str]:
    """Words for two objects, each with its box."""
    return {
        "name": scene.objects[i].name,
        "verb": verb(scene.objects[i].name),
        "boxes": list_boxes([i]),
        "other_name": scene.objects[j].name,
        "other_boxes": list_boxes([j]),
    }
