"""Questions about a playground scene, and their answers: everything the small world has to say.

Answers are grounded: whatever they name is followed by its box. A question never has two right answers: what is
ambiguous (two dogs, a diagonal neighbour, two things of equal size) is asked in another way or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ferret_core.data.playground.objects import CATEGORIES, THINGS, Thing, article
from ferret_core.data.playground.scenes import Scene, SceneObject
from ferret_core.data.pointing import GESTURES, Gesture, point_at
from ferret_core.geometry import Box, Region
from ferret_core.prompt import Turn

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
_CLEAR = 1.25  # one size or offset must exceed the other by this factor to be called larger, or left of

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


class Interview:
    """Asks about one scene, collecting the regions and boxes that its questions and answers point at."""

    def __init__(self, scene: Scene, rng: np.random.Generator, gestures: Sequence[Gesture] = GESTURES) -> None:
        self.scene, self.rng, self.gestures = scene, rng, gestures
        self.regions: list[Region] = []
        self.boxes: list[Box] = []
        self.subject: int | None = None
        """The object that "it" means, if the last answer was about a single one."""

    # ---- what a question can be about ----

    @property
    def objects(self) -> tuple[SceneObject, ...]:
        """The things in the scene."""
        return self.scene.objects

    def same(self, i: int) -> list[int]:
        """Objects of the same kind as object i, itself included."""
        return [j for j, other in enumerate(self.objects) if other.thing == self.objects[i].thing]

    def absent(self, like: Thing) -> Thing:
        """A kind of thing that is not in the scene; half of the time of the same category as `like`."""
        present = {o.thing for o in self.objects}
        pool = [t for t in THINGS if t not in present and t.category == like.category] if self.rng.random() < 0.5 else []
        pool = pool or [t for t in THINGS if t not in present]
        return pool[self.rng.integers(len(pool))]

    def any_object(self) -> int:
        """A random object."""
        return int(self.rng.integers(len(self.objects)))

    def direction(self, i: int, j: int) -> str | None:
        """Where object i is as seen from object j; None if that is neither clearly beside nor clearly above or below."""
        (xi, yi), (xj, yj) = self.objects[i].center, self.objects[j].center
        dx, dy = xi - xj, yi - yj
        if abs(dx) > _CLEAR * abs(dy) and abs(dx) > 0.08 * self.scene.size.width:
            return "left of" if dx < 0 else "right of"
        if abs(dy) > _CLEAR * abs(dx) and abs(dy) > 0.08 * self.scene.size.height:
            return "above" if dy < 0 else "below"
        return None

    def point(self, i: int) -> str:
        """Points at object i with a random gesture: `[regionN]`."""
        gesture = self.gestures[int(self.rng.integers(len(self.gestures)))]
        self.regions.append(point_at(self.scene.mask_of(i), gesture, self.rng))
        return f"[region{len(self.regions) - 1}]"

    def box(self, i: int) -> str:
        """The box of object i: `[boxN]`."""
        self.boxes.append(self.objects[i].box)
        return f"[box{len(self.boxes) - 1}]"

    def pick(self, templates: Sequence[str]) -> str:
        """One of several phrasings."""
        return templates[int(self.rng.integers(len(templates)))]

    # ---- the kinds of questions: each returns a turn, or None if the scene does not lend itself to it ----

    def name(self) -> Turn:
        """What is [region0]? It is a dog [box0]."""
        i = self.subject = self.any_object()
        return Turn(self.pick(_NAME).format(self.point(i)), f"{self._it_is(i)} {self.box(i)}.")

    def locate(self) -> Turn:
        """Where is the dog? The dog is at [box0]. Also several of a kind, and none."""
        i = self.any_object()
        thing, same = self.objects[i].thing, self.same(i)
        if self.rng.random() < 0.15:
            missing = self.absent(thing)
            self.subject = None
            return Turn(self.pick(_LOCATE).format(missing.name, verb=missing.verb), self._there_is_no(missing))
        if len(same) == 1:
            self.subject = i
            question = self.pick(_LOCATE).format(thing.name, verb=thing.verb)
            return Turn(question, f"The {thing.name} {thing.verb} at {self.box(i)}.")
        self.subject = None
        boxes = " and ".join(self.box(j) for j in sorted(same, key=lambda j: self.objects[j].center))
        verb = "are" if thing.countable else thing.verb
        return Turn(self.pick(_LOCATE).format(thing.plural, verb=verb), f"The {thing.plural} {verb} at {boxes}.")

    def locate_by_relation(self) -> Turn | None:
        """Where is the dog left of the cake? Where is the largest dog?"""
        i = self.any_object()
        thing, same = self.objects[i].thing, self.same(i)
        if not thing.countable:
            return None
        phrases = [p for p in (self._superlative(i, same), self._relative(i, same)) if p]
        if not phrases:
            return None
        self.subject = i
        phrase = self.pick(phrases)
        return Turn(self.pick(_LOCATE).format(phrase, verb="is"), f"The {phrase} is at {self.box(i)}.")

    def describe(self) -> Turn:
        """Describe the image. The image shows a dog [box0] and two cars [box1] [box2]."""
        self.subject = None
        order = sorted(range(len(self.objects)), key=lambda i: self.objects[i].center)
        groups = list(dict.fromkeys(tuple(sorted(self.same(i), key=lambda j: self.objects[j].center)) for i in order))
        parts = [self._some(group) for group in groups]
        listing = " and ".join([*([", ".join(parts[:-1])] if parts[:-1] else []), parts[-1]])
        return Turn(self.pick(_DESCRIBE), f"The image shows {listing}.")

    def presence(self) -> Turn:
        """Is there a dog in the image? Yes, there is a dog [box0]."""
        i = self.any_object()
        present = self.rng.random() < 0.5
        thing = self.objects[i].thing if present else self.absent(self.objects[i].thing)
        asked = f"{'Is' if thing.verb == 'is' else 'Are'} there {thing.a_name if thing.countable else 'any ' + thing.name}"
        question = f"{asked} in the image?" if self.rng.random() < 0.7 else f"{asked} here?"
        same = self.same(i)
        self.subject = i if present and len(same) == 1 else None
        if not present:
            return Turn(question, f"No, {self._there_is_no(thing, start='t')}")
        verb = "are" if len(same) > 1 and thing.countable else thing.verb
        return Turn(question, f"Yes, there {verb} {self._some(tuple(same))}.")

    def verify(self) -> Turn:
        """Is [region0] a dog? No, it is a cat [box0]."""
        i = self.subject = self.any_object()
        thing = self.objects[i].thing
        right = self.rng.random() < 0.5
        asked = thing if right else self.absent(thing)
        reply = self._it_is(i)
        answer = f"{'Yes' if right else 'No'}, {reply[0].lower()}{reply[1:]} {self.box(i)}."
        return Turn(f"Is {self.point(i)} {asked.a_name}?", answer)

    def choose_name(self) -> Turn:
        """Is [region0] a dog or a cat? It is a cat [box0]."""
        i = self.subject = self.any_object()
        thing = self.objects[i].thing
        names = [thing.a_name, self.absent(thing).a_name]
        self.rng.shuffle(names)
        return Turn(f"Is {self.point(i)} {names[0]} or {names[1]}?", f"{self._it_is(i)} {self.box(i)}.")

    def choose_region(self) -> Turn | None:
        """Which is larger, [region0] or [region1]? The dog [box0] is larger."""
        i, j = self._two()
        a, b = self.objects[i], self.objects[j]
        comparisons = {
            "larger": (a.box.area, b.box.area),
            "further left": (self.scene.size.width - a.center[0], self.scene.size.width - b.center[0]),
            "higher up": (self.scene.size.height - a.center[1], self.scene.size.height - b.center[1]),
        }
        clear = [word for word, (u, v) in comparisons.items() if max(u, v) > _CLEAR * min(u, v)]
        if not clear:
            return None
        word = self.pick(clear)
        winner = self.subject = i if comparisons[word][0] > comparisons[word][1] else j
        thing = self.objects[winner].thing
        question = f"Which is {word}, {self.point(i)} or {self.point(j)}?"
        return Turn(question, f"The {thing.name} {self.box(winner)} {thing.verb} {word}.")

    def count(self) -> Turn | None:
        """How many dogs are there? There are two dogs [box0] [box1]."""
        i = self.any_object()
        thing = self.objects[i].thing
        if not thing.countable:
            return None
        self.subject = None
        if self.rng.random() < 0.15:
            missing = self.absent(thing)
            return Turn(f"How many {missing.plural} are there?", f"There are no {missing.plural} in the image.")
        if self.rng.random() < 0.15:
            return Turn("How many objects are there?", f"There are {NUMBERS[len(self.objects)]} objects.")
        same = self.same(i)
        verb = "is" if len(same) == 1 else "are"
        return Turn(f"How many {thing.plural} are there?", f"There {verb} {self._some(tuple(same), one='one')}.")

    def relate(self) -> Turn | None:
        """Where is [region0] relative to [region1]? The dog [box0] is left of the cake [box1]."""
        i, j = self._two()
        direction = self.direction(i, j)
        if not direction:
            return None
        self.subject = None
        a, b = self.objects[i].thing, self.objects[j].thing
        fact = f"the {a.name} {{}}{a.verb} {direction} the {b.name}{{}}."
        if self.rng.random() < 0.5:
            question = self.pick(("Where is {} relative to {}?", "What is the relation between {} and {}?"))
            question = question.format(self.point(i), self.point(j))
            return Turn(question, "T" + fact[1:].format(f"{self.box(i)} ", f" {self.box(j)}"))
        asked = direction if self.rng.random() < 0.5 else self.pick([d for d in _OPPOSITE if d != direction])
        question = f"Is {self.point(i)} {asked} {self.point(j)}?"
        return Turn(question, f"{'Yes' if asked == direction else 'No'}, {fact.format('', '')}")

    def category(self) -> Turn:
        """What kind of thing is [region0]? It is an animal [box0]."""
        i = self.subject = self.any_object()
        category = self.objects[i].thing.category
        if self.rng.random() < 0.5:
            answer = f"It is {_a_category(category)} {self.box(i)}."
            return Turn(f"What kind of thing is {self.point(i)}?", answer)
        asked = category if self.rng.random() < 0.5 else self.pick([c for c in CATEGORIES if c != category])
        answer = f"{'Yes' if asked == category else 'No'}, it is {_a_category(category)} {self.box(i)}."
        return Turn(f"Is {self.point(i)} {_a_category(asked)}?", answer)

    def follow_up(self) -> Turn | None:
        """Where is it? What kind of thing is it? Is it above [region1]?"""
        i = self.subject
        if i is None:
            return None
        thing = self.objects[i].thing
        kind = self.rng.integers(3)
        if kind == 0:
            return Turn("Where is it?", f"The {thing.name} {thing.verb} at {self.box(i)}.")
        if kind == 1:
            return Turn("What kind of thing is it?", f"It is {_a_category(thing.category)}.")
        j = self.any_object()
        direction = self.direction(i, j) if j != i else None
        if not direction:
            return None
        asked = direction if self.rng.random() < 0.5 else self.pick([d for d in _OPPOSITE if d != direction])
        fact = f"the {thing.name} {thing.verb} {direction} the {self.objects[j].thing.name}."
        return Turn(f"Is it {asked} {self.point(j)}?", f"{'Yes' if asked == direction else 'No'}, {fact}")

    # ---- wording ----

    def _it_is(self, i: int) -> str:
        thing = self.objects[i].thing
        return f"{'It is' if thing.verb == 'is' else 'They are'} {thing.a_name}"

    def _there_is_no(self, thing: Thing, start: str = "T") -> str:
        return f"{start}here {thing.verb} no {thing.name} in the image."

    def _some(self, group: tuple[int, ...], one: str = "") -> str:
        """ "a dog [box0]", "two dogs [box0] [box1]", "bread [box0]"."""
        thing = self.objects[group[0]].thing
        boxes = " ".join(self.box(i) for i in group)
        if len(group) == 1 or not thing.countable:
            return f"{one + ' ' + thing.name if one else thing.a_name} {boxes}"
        return f"{NUMBERS[len(group)]} {thing.plural} {boxes}"

    def _superlative(self, i: int, same: list[int]) -> str | None:
        """ "largest dog", "leftmost dog": true of i alone, among several dogs, and clearly so."""
        others = [self.objects[j] for j in same if j != i]
        if not others:
            return None
        me, gap_x, gap_y = self.objects[i], 0.08 * self.scene.size.width, 0.08 * self.scene.size.height
        options = {
            "largest": all(me.box.area > _CLEAR**2 * o.box.area for o in others),
            "smallest": all(me.box.area * _CLEAR**2 < o.box.area for o in others),
            "leftmost": all(me.center[0] + gap_x < o.center[0] for o in others),
            "rightmost": all(me.center[0] - gap_x > o.center[0] for o in others),
            "top": all(me.center[1] + gap_y < o.center[1] for o in others),
            "bottom": all(me.center[1] - gap_y > o.center[1] for o in others),
        }
        true = [word for word, holds in options.items() if holds]
        return f"{self.pick(true)} {me.thing.name}" if true else None

    def _relative(self, i: int, same: list[int]) -> str | None:
        """ "dog left of the cake": the cake is the only one, and no other dog is left of it or nearly so."""
        anchors = [j for j in range(len(self.objects)) if j not in same and len(self.same(j)) == 1]
        self.rng.shuffle(anchors)
        for j in anchors:
            direction = self.direction(i, j)
            if direction and all(self.direction(k, j) == _OPPOSITE[direction] for k in same if k != i):
                return f"{self.objects[i].thing.name} {direction} the {self.objects[j].thing.name}"
        return None

    def _two(self) -> tuple[int, int]:
        i, j = self.rng.choice(len(self.objects), 2, replace=False)
        return int(i), int(j)


_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# How often each kind of question is asked.
KINDS: dict[str, tuple[Callable[[Interview], Turn | None], float]] = {
    "name": (Interview.name, 5),
    "locate": (Interview.locate, 4),
    "locate_by_relation": (Interview.locate_by_relation, 3),
    "describe": (Interview.describe, 1),
    "presence": (Interview.presence, 2),
    "verify": (Interview.verify, 2),
    "choose_name": (Interview.choose_name, 1),
    "choose_region": (Interview.choose_region, 1),
    "count": (Interview.count, 1.5),
    "relate": (Interview.relate, 1.5),
    "category": (Interview.category, 0.7),
    "follow_up": (Interview.follow_up, 1.5),
}


def _a_category(category: str) -> str:
    return "food" if category == "food" else f"{article(category)} {category}"
