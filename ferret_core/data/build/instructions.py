"""Grounded dialogues and foils by an LLM that reads a scene as text (paper sections 4.2 and 4.3).

The model sees names, attributes, boxes, relations and captions, and points with the scene's own `[regionN]` and `[boxN]`:
it cannot invent a place. Coordinates that it writes out all the same must be a given box, which they then become.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ferret_core.data.build.language_model import LanguageModel, parse_object
from ferret_core.data.build.scene import Scene, check_plain, without_mentions
from ferret_core.data.build.words import may_be
from ferret_core.prompt import Turn, mentioned_boxes, mentioned_regions

MOST_OBJECTS = 40  # the largest ones, in what the model reads
MOST_TURNS = 8
_COORDINATES = re.compile(r"\[ *\d[\d., ]*\]")

_SYSTEM = """You write training conversations for a model that sees a picture. You get the picture as text: its objects, \
numbered, with boxes [x1, y1, x2, y2] in pixels, what they have to do with each other, and captions.

Write a conversation of 2 to 4 turns between a person who points at things and asks about them, and a model that answers as if \
it saw the picture. Ask about what takes some thought: what is going on and why, what things are for, how they compare, what \
may come next. Only say what follows from the text.

In a question, [regionN] points at object N: "What is [region3] doing?" In an answer, put [boxN] right behind the words for \
object N: "The dog [box3] is chasing a ball [box5]." Write no coordinates and no other numbers in brackets.

Answer with JSON only: {"turns": [{"question": "...", "answer": "..."}]}"""

_FOIL_SYSTEM = """You make hard questions for a model that sees a picture. You get words that are true of something in it. \
Write 3 versions that are false of the same thing: change one noun, attribute, number or relation into another that looks \
alike and excludes the true one (a dog into a fox, never into an animal). Change nothing else.

Answer with JSON only: {"foils": ["...", "...", "..."]}"""


def instruct(scene: Scene, model: LanguageModel) -> tuple[Turn, ...]:
    """A dialogue about the scene, empty if there is nothing to point at. Raises `LanguageModelError`."""
    shown = _shown(scene)
    if not shown:
        return ()
    return model.ask(_SYSTEM, describe_scene(scene, shown), lambda text: parse_dialogue(text, scene, shown))


def describe_scene(scene: Scene, shown: Sequence[int]) -> str:
    """The scene as text."""
    lines = [f"Picture: {scene.size.width} x {scene.size.height} pixels", "Objects:"]
    said = {each.object: each.text for each in reversed(scene.descriptions)}
    for i in shown:
        each = scene.objects[i]
        words = ", ".join(filter(None, (each.name, *each.attributes, said.get(i))))
        lines.append(f"  {i}: {words} {_coordinates(scene, i)}")
    related = [each for each in scene.relations if each.subject in shown and each.object in shown]
    lines += ["Relations:"] * bool(related) + [f"  {each.subject} {each.predicate} {each.object}" for each in related]
    lines += ["Captions:"] * bool(scene.captions) + [f"  {without_mentions(text)}" for text in scene.captions]
    return "\n".join(lines)


def parse_dialogue(text: str, scene: Scene, shown: Sequence[int]) -> tuple[Turn, ...]:
    """The turns a model wrote. Raises `ValueError` that tells it what is wrong: form, an unknown object, other coordinates."""
    values = parse_object(text, "turns")
    if not 1 <= len(values) <= MOST_TURNS:
        raise ValueError(f"needs 1 to {MOST_TURNS} turns, got {len(values)}")
    turns = []
    for i, value in enumerate(values):
        if not isinstance(value, dict) or set(value) != {"question", "answer"}:
            raise ValueError(f"turn {i}: must have exactly question and answer")
        texts = {}
        for role, mentions, other in (("question", mentioned_regions, "box"), ("answer", mentioned_boxes, "region")):
            if not isinstance(value[role], str):
                raise ValueError(f"turn {i}: {role} must be text")
            texts[role] = _with_numbers(value[role].strip(), scene, shown, role)
            check_plain(without_mentions(texts[role]))
            if (mentioned_boxes if other == "box" else mentioned_regions)(texts[role]):
                raise ValueError(f"turn {i}: [{other}N] has no place in a {role}")
            unknown = set(mentions(texts[role])) - set(shown)
            if unknown:
                raise ValueError(f"turn {i}: there is no object {min(unknown)}")
        turns.append(Turn(texts["question"], texts["answer"]))
    if not any(mentioned_regions(turn.question) or mentioned_boxes(turn.answer or "") for turn in turns):
        raise ValueError("points at nothing: use [regionN] in questions and [boxN] in answers")
    return tuple(turns)


class LanguageModelFoils:
    """By a language model."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def of_name(self, name: str) -> Sequence[str]:
        """Names of what looks alike. Raises `LanguageModelError`."""
        return self.model.ask(_FOIL_SYSTEM, name, lambda text: parse_foils(text, name, is_name=True))

    def of_phrase(self, phrase: str) -> Sequence[str]:
        """The phrase, made false. Raises `LanguageModelError`."""
        return self.model.ask(_FOIL_SYSTEM, phrase, lambda text: parse_foils(text, phrase))


def parse_foils(text: str, words: str, is_name: bool = False) -> list[str]:
    """Foils a model wrote, without those that could be true. Raises `ValueError` if none is left."""
    values = parse_object(text, "foils")
    if not all(isinstance(value, str) and value.strip() for value in values):
        raise ValueError("foils must be non-empty texts")
    foils = [check_plain(" ".join(value.split()).rstrip(".")) for value in values]
    foils = [foil for foil in foils if foil.lower() != words.lower() and not (is_name and may_be(words, foil.lower()))]
    if not foils:
        raise ValueError(f"every version could be true of {words!r} too")
    return foils


def _shown(scene: Scene) -> list[int]:
    described = {each.object for each in scene.descriptions}
    known = [i for i, each in enumerate(scene.objects) if each.pointable and (each.name or i in described)]
    return sorted(sorted(known, key=lambda i: -scene.objects[i].box.area)[:MOST_OBJECTS])


def _coordinates(scene: Scene, i: int) -> str:
    return f"[{', '.join(str(round(value)) for value in scene.objects[i].box.coordinates(scene.size))}]"


def _with_numbers(text: str, scene: Scene, shown: Sequence[int], role: str) -> str:
    """Coordinates as the `[regionN]` or `[boxN]` they are."""
    given = {_coordinates(scene, i).replace(" ", ""): i for i in reversed(shown)}

    def number(match: re.Match[str]) -> str:
        place = match[0].replace(" ", "")
        if place not in given:
            raise ValueError(f"{match[0]} is none of the given boxes")
        return f"[{'region' if role == 'question' else 'box'}{given[place]}]"

    return _COORDINATES.sub(number, text)
