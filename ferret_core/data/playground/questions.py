"""Questions about a playground scene, and their answers: everything the small world has to say.

Answers are grounded: whatever they name is followed by its box. A question never has two right answers: what is
ambiguous (two dogs, a diagonal neighbour, two things of equal size) is asked in another way or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from ferret_core.data.playground.objects import CATEGORIES, LOOK_ALIKES, THINGS, Thing, article
from ferret_core.data.playground.scenes import Scene
from ferret_core.data.pointing import GESTURES, Gesture, point_at
from ferret_core.geometry import Box, Region
from ferret_core.prompt import Turn

KINDS = {
    "name": 4,
    "locate": 6,
    "locate_by_relation": 3,
    "describe": 1,
    "presence": 2,
    "verify": 1.5,
    "choose_name": 1,
    "choose_region": 1,
    "count": 1.5,
    "relate": 1.5,
    "category": 0.7,
    "follow_up": 1.5,
}
"""The kinds of questions, each a method of `Interview`, and how often they are asked, relative to each other."""

_CLEAR_RATIO = 1.25  # one size or offset must exceed the other by this factor to be called larger, or left of
_CLEAR_GAP = 0.08  # of the picture's side: what is less far apart is neither beside nor above
_ABSENT_CHANCE = 0.15  # of asking where something is, or how many there are, when there is none
_HARD_ABSENT_CHANCE = 0.25

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")

_NAME = (
    "What is {}?",
    "What is the object {}?",
    "What is this {}?",
    "What do you see at {}?",
    "Name the object {}.",
    "Identify {}.",
)
_LOCATE = (
    "Where {verb} the {}?",
    "Where {verb} the {} in the image?",
    "What is the location of the {} in the image?",
    "Locate the {}.",
    "Find the {}.",
    "Show me the {}.",
)
_DESCRIBE = (
    "Describe the image.",
    "Describe the image in detail.",
    "What is in the image?",
    "What do you see?",
    "List everything you see.",
)
_RELATE = ("Where is {} relative to {}?", "What is the relation between {} and {}?")

_T = TypeVar("_T")


class Interview:
    """Asks about one scene, collecting the regions and boxes that its questions and answers point at.

    Objects go by their index in the scene. Hard questions are more often about look-alikes of what is there, about what is not,
    and about one of several.
    """

    def __init__(
        self, scene: Scene, rng: np.random.Generator, gestures: Sequence[Gesture] = GESTURES, hard: bool = False
    ) -> None:
        self.scene, self.objects, self.rng, self.gestures, self.hard = scene, scene.objects, rng, gestures, hard
        self.regions: list[Region] = []
        self.boxes: list[Box] = []
        self.subject: int | None = None
        """The object that "it" means, if the last answer was about a single one."""
        self._gap_x, self._gap_y = _CLEAR_GAP * scene.size.width, _CLEAR_GAP * scene.size.height

    # ---- what a question can be about ----

    def pick(self, options: Sequence[_T]) -> _T:
        """One of several."""
        return options[int(self.rng.integers(len(options)))]

    def any_object(self) -> int:
        """A random object."""
        return self.pick(range(len(self.objects)))

    def one_of_several(self) -> int:
        """A random object; in hard questions, half of the time one of which there are several, if there is one."""
        if self.hard and self.rng.random() < 0.5:
            several = [i for i in range(len(self.objects)) if len(self.same_kind(i)) > 1]
            if several:
                return self.pick(several)
        return self.any_object()

    def asks_in_vain(self) -> bool:
        """Whether to ask about something that is not there."""
        return bool(self.rng.random() < (_HARD_ABSENT_CHANCE if self.hard else _ABSENT_CHANCE))

    def same_kind(self, i: int) -> tuple[int, ...]:
        """Objects of the same kind as object i, itself included."""
        return tuple(j for j, other in enumerate(self.objects) if other.thing == self.objects[i].thing)

    def counted(self, i: int) -> tuple[int, ...]:
        """The same as a count lists them: in training from left to right, which can be learned. The scenes that models are
        compared on list them in the order they were put there, which nobody can see; their scoring knows that."""
        return self._left_to_right(self.same_kind(i)) if self.hard else self.same_kind(i)

    def absent_thing(self, like: Thing, countable: bool = False) -> Thing:
        """A kind of thing that is not in the scene; half of the time of the same category as `like`, in hard questions
        often one that looks like it."""
        present = {o.thing for o in self.objects}
        absent = [t for t in THINGS if t not in present and (t.countable or not countable)]
        if self.hard and self.rng.random() < 0.4:
            look_alikes = [t for t in absent if t.name in LOOK_ALIKES.get(like.name, ())]
            if look_alikes:
                return self.pick(look_alikes)
        alike = [t for t in absent if t.category == like.category] if self.rng.random() < 0.5 else []
        return self.pick(alike or absent)

    def direction(self, i: int, j: int) -> str | None:
        """Where object i is as seen from object j; None if that is neither clearly beside nor clearly above or below."""
        (xi, yi), (xj, yj) = self.objects[i].center, self.objects[j].center
        dx, dy = xi - xj, yi - yj
        if abs(dx) > max(_CLEAR_RATIO * abs(dy), self._gap_x):
            return "left of" if dx < 0 else "right of"
        if abs(dy) > max(_CLEAR_RATIO * abs(dx), self._gap_y):
            return "above" if dy < 0 else "below"
        return None

    def point(self, i: int) -> str:
        """Points at object i with a random gesture: `[regionN]`."""
        self.regions.append(point_at(self.scene.mask_of(i), self.pick(self.gestures), self.rng))
        return f"[region{len(self.regions) - 1}]"

    def box(self, i: int) -> str:
        """The box of object i: `[boxN]`."""
        self.boxes.append(self.objects[i].box)
        return f"[box{len(self.boxes) - 1}]"

    # ---- the kinds of questions: each returns a turn, or None if the scene does not lend itself to it ----

    def name(self) -> Turn:
        """What is [region0]? It is a dog [box0]."""
        i = self.subject = self.any_object()
        return Turn(self.pick(_NAME).format(self.point(i)), _sentence(self._it_is(i)))

    def locate(self) -> Turn:
        """Where is the dog? The dog is at [box0]. Also several of a kind, and none."""
        i = self.any_object()
        thing, group = self.objects[i].thing, self._left_to_right(self.same_kind(i))
        if self.asks_in_vain():
            self.subject = None
            absent = self.absent_thing(thing)
            return Turn(self._where(absent.name, absent.verb), _sentence(_there_is_no(absent)))
        self.subject = i if len(group) == 1 else None
        name, verb = _noun(thing, len(group)), _verb(thing, len(group))
        boxes = " and ".join(self.box(j) for j in group)
        return Turn(self._where(name, verb), _sentence(f"the {name} {verb} at {boxes}"))

    def locate_by_relation(self) -> Turn | None:
        """Where is the dog left of the cake? Where is the largest dog?"""
        i = self.one_of_several()
        if not self.objects[i].thing.countable:
            return None
        phrases = [phrase for phrase in (self._superlative(i), self._relative(i)) if phrase]
        if not phrases:
            return None
        self.subject = i
        phrase = self.pick(phrases)
        return Turn(self._where(phrase, "is"), _sentence(f"the {phrase} is at {self.box(i)}"))

    def describe(self) -> Turn:
        """Describe the image. The image shows a dog [box0] and two cars [box1] [box2]."""
        self.subject = None
        everything = self._left_to_right(range(len(self.objects)))
        groups = dict.fromkeys(self._left_to_right(self.same_kind(i)) for i in everything)
        *others, last = [self._some(group) for group in groups]
        listing = f"{', '.join(others)} and {last}" if others else last
        return Turn(self.pick(_DESCRIBE), _sentence(f"the image shows {listing}"))

    def presence(self) -> Turn:
        """Is there a dog in the image? Yes, there is a dog [box0]."""
        i = self.any_object()
        thing, group = self.objects[i].thing, self.counted(i)
        present = self.rng.random() < 0.5
        self.subject = i if present and len(group) == 1 else None
        asked = thing if present else self.absent_thing(thing)
        any_of_it = asked.a_name if asked.countable else f"any {asked.name}"
        place = "in the image" if self.rng.random() < 0.7 else "here"
        fact = f"there {_verb(thing, len(group))} {self._some(group)}" if present else _there_is_no(asked)
        return Turn(f"{asked.verb.capitalize()} there {any_of_it} {place}?", _yes_no(present, fact))

    def verify(self) -> Turn:
        """Is [region0] a dog? No, it is a cat [box0]."""
        i = self.subject = self.any_object()
        thing = self.objects[i].thing
        right = self.rng.random() < 0.5
        asked = thing if right else self.absent_thing(thing)
        return Turn(f"Is {self.point(i)} {asked.a_name}?", _yes_no(right, self._it_is(i)))

    def choose_name(self) -> Turn:
        """Is [region0] a dog or a cat? It is a cat [box0]."""
        i = self.subject = self.any_object()
        thing = self.objects[i].thing
        names = [thing.a_name, self.absent_thing(thing).a_name]
        self.rng.shuffle(names)
        return Turn(f"Is {self.point(i)} {' or '.join(names)}?", _sentence(self._it_is(i)))

    def choose_region(self) -> Turn | None:
        """Which is larger, [region0] or [region1]? The dog [box0] is larger."""
        i, j = self._two_objects()
        pair, (width, height) = (self.objects[i], self.objects[j]), self.scene.size
        comparisons = {  # places by the distance from the opposite edge: the winner has more of it, too
            "larger": [o.box.area for o in pair],
            "further left": [width - o.center[0] for o in pair],
            "higher up": [height - o.center[1] for o in pair],
        }
        clear = [word for word, values in comparisons.items() if max(values) > _CLEAR_RATIO * min(values)]
        if not clear:
            return None
        word = self.pick(clear)
        first, second = comparisons[word]
        winner = self.subject = i if first > second else j
        thing = self.objects[winner].thing
        question = f"Which is {word}, {self.point(i)} or {self.point(j)}?"
        return Turn(question, _sentence(f"the {thing.name} {self.box(winner)} {thing.verb} {word}"))

    def count(self) -> Turn | None:
        """How many dogs are there? There are two dogs [box0] [box1]."""
        i = self.one_of_several()
        thing, group = self.objects[i].thing, self.counted(i)
        if not thing.countable:
            return None
        self.subject = None
        if self.asks_in_vain():
            name = self.absent_thing(thing, countable=True).plural
            return Turn(f"How many {name} are there?", f"There are no {name} in the image.")
        if self.rng.random() < 0.15:
            return Turn("How many objects are there?", f"There are {_NUMBERS[len(self.objects)]} objects.")
        fact = f"there {_verb(thing, len(group))} {self._number_of(group)}"
        return Turn(f"How many {thing.plural} are there?", _sentence(fact))

    def relate(self) -> Turn | None:
        """Where is [region0] relative to [region1]? The dog [box0] is left of the cake [box1]."""
        i, j = self._two_objects()
        direction = self.direction(i, j)
        if not direction:
            return None
        self.subject = None
        a, b = self.objects[i].thing, self.objects[j].thing
        if self.rng.random() < 0.5:
            question = self.pick(_RELATE).format(self.point(i), self.point(j))
            return Turn(question, _sentence(f"the {a.name} {self.box(i)} {a.verb} {direction} the {b.name} {self.box(j)}"))
        asked = self._right_or_wrong(direction, _OPPOSITE)
        question = f"Is {self.point(i)} {asked} {self.point(j)}?"
        return Turn(question, _yes_no(asked == direction, f"the {a.name} {a.verb} {direction} the {b.name}"))

    def category(self) -> Turn:
        """What kind of thing is [region0]? It is an animal [box0]."""
        i = self.subject = self.any_object()
        category = self.objects[i].thing.category
        fact = f"it is {_a_category(category)} {self.box(i)}"
        if self.rng.random() < 0.5:
            return Turn(f"What kind of thing is {self.point(i)}?", _sentence(fact))
        asked = self._right_or_wrong(category, CATEGORIES)
        return Turn(f"Is {self.point(i)} {_a_category(asked)}?", _yes_no(asked == category, fact))

    def follow_up(self) -> Turn | None:
        """Where is it? What kind of thing is it? Is it above [region1]?"""
        i = self.subject
        if i is None:
            return None
        thing = self.objects[i].thing
        form = self.rng.integers(3)
        if form == 0:
            return Turn("Where is it?", _sentence(f"the {thing.name} {thing.verb} at {self.box(i)}"))
        if form == 1:
            return Turn("What kind of thing is it?", _sentence(f"it is {_a_category(thing.category)}"))
        j = self.any_object()
        direction = self.direction(i, j)
        if not direction:
            return None
        asked = self._right_or_wrong(direction, _OPPOSITE)
        fact = f"the {thing.name} {thing.verb} {direction} the {self.objects[j].thing.name}"
        return Turn(f"Is it {asked} {self.point(j)}?", _yes_no(asked == direction, fact))

    # ---- choices ----

    def _two_objects(self) -> tuple[int, int]:
        i, j = self.rng.choice(len(self.objects), 2, replace=False)
        return int(i), int(j)

    def _right_or_wrong(self, right: str, options: Iterable[str]) -> str:
        """What to ask about: half of the time what is right, or else another one of the options."""
        return right if self.rng.random() < 0.5 else self.pick([option for option in options if option != right])

    def _left_to_right(self, group: Iterable[int]) -> tuple[int, ...]:
        return tuple(sorted(group, key=lambda i: self.objects[i].center))

    def _superlative(self, i: int) -> str | None:
        """ "largest dog", "leftmost dog": true of i alone, among several dogs, and clearly so."""
        others = [self.objects[j] for j in self.same_kind(i) if j != i]
        if not others:
            return None
        me = self.objects[i]
        x, y = me.center
        claims = {
            "largest": all(me.box.area > _CLEAR_RATIO**2 * o.box.area for o in others),
            "smallest": all(me.box.area * _CLEAR_RATIO**2 < o.box.area for o in others),
            "leftmost": all(x + self._gap_x < o.center[0] for o in others),
            "rightmost": all(x - self._gap_x > o.center[0] for o in others),
            "top": all(y + self._gap_y < o.center[1] for o in others),
            "bottom": all(y - self._gap_y > o.center[1] for o in others),
        }
        true = [word for word, holds in claims.items() if holds]
        return f"{self.pick(true)} {me.thing.name}" if true else None

    def _relative(self, i: int) -> str | None:
        """ "dog left of the cake": the cake is the only one, and every other dog is clearly right of it."""
        others = [k for k in self.same_kind(i) if k != i]
        anchors = [j for j in range(len(self.objects)) if j != i and len(self.same_kind(j)) == 1]
        self.rng.shuffle(anchors)
        for j in anchors:
            direction = self.direction(i, j)
            if direction and all(self.direction(k, j) == _OPPOSITE[direction] for k in others):
                return f"{self.objects[i].thing.name} {direction} the {self.objects[j].thing.name}"
        return None

    # ---- wording: facts are written in lower case and without their full stop ----

    def _where(self, phrase: str, verb: str) -> str:
        """ "Where is the dog?", "Find the dog."."""
        return self.pick(_LOCATE).format(phrase, verb=verb)

    def _it_is(self, i: int) -> str:
        """ "it is a dog [box0]", "they are grapes [box0]"."""
        thing = self.objects[i].thing
        return f"{'it is' if thing.verb == 'is' else 'they are'} {thing.a_name} {self.box(i)}"

    def _some(self, group: Sequence[int]) -> str:
        """Objects of one kind: "a dog [box0]", "two dogs [box0] [box1]", "bread [box0] [box1]"."""
        thing = self.objects[group[0]].thing
        if len(group) > 1 and thing.countable:
            return self._number_of(group)
        return f"{thing.a_name} {self._boxes(group)}"

    def _number_of(self, group: Sequence[int]) -> str:
        """Objects of one kind: "one dog [box0]", "two dogs [box0] [box1]"."""
        return f"{_NUMBERS[len(group)]} {_noun(self.objects[group[0]].thing, len(group))} {self._boxes(group)}"

    def _boxes(self, group: Sequence[int]) -> str:
        return " ".join(self.box(i) for i in group)


def _sentence(fact: str) -> str:
    return f"{fact[0].upper()}{fact[1:]}."


def _yes_no(right: bool, fact: str) -> str:
    return f"{'Yes' if right else 'No'}, {fact}."


def _there_is_no(thing: Thing) -> str:
    return f"there {thing.verb} no {thing.name} in the image"


def _noun(thing: Thing, count: int) -> str:
    return thing.name if count == 1 else thing.plural


def _verb(thing: Thing, count: int) -> str:
    return "are" if count > 1 and thing.countable else thing.verb


def _a_category(category: str) -> str:
    return "food" if category == "food" else f"{article(category)} {category}"
