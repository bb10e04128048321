"""Phrasings of each task, as data: questions and answers that are filled in and paired at random.

`{region}` is a `[regionN]`, `{boxes}` one or several `[boxN]`, `{a_name}` a name with its article if it takes one. A
question that asks for places says so in some phrasings and leaves it to the model's habit in others.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple


class Phrasings(NamedTuple):
    """Of a task. Any question goes with any answer."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]


TEMPLATES: dict[str, Phrasings] = {
    "name": Phrasings(
        (
            "What is {region}?",
            "What is the object {region}?",
            "What do you see at {region}?",
            "Name what is at {region}.",
            "Which object does {region} show?",
            "I am pointing at {region}. What is it?",
            "Tell me what {region} is.",
            "What would you call the thing at {region}?",
        ),
        ("{A_name}.", "I see {a_name} there.", "{A_name} {boxes}."),
    ),
    "locate": Phrasings(
        (
            "Where {verb} the {name}?",
            "Where in the image {verb} the {name}?",
            "Locate the {name}.",
            "Point out the {name}.",
            "Give me the box of the {name}.",
            "I am looking for the {name}. Where should I look?",
            "Show where the {name} {verb}.",
        ),
        ("The {name} {verb} at {boxes}.", "{boxes}", "Here: the {name} {boxes}."),
    ),
    "find": Phrasings(
        (
            "Find all {names} in the image.",
            "Locate every {one} you can see.",
            "Where are the {names}? Give all of them.",
            "Mark each {one} in the picture.",
            "Detect all {names}.",
            "How many {names} are there, and where?",
            "List the boxes of all {names}.",
        ),
        ("There {are} {counted} {boxes}.", "I see {counted} {boxes}.", "{Counted} {boxes}."),
    ),
    "describe": Phrasings(
        (
            "Describe {region}.",
            "Give a short description of {region}.",
            "What can be said about {region}?",
            "How does {region} look?",
            "Write a caption for {region}.",
            "In a few words, what does {region} show?",
            "Tell me about the area {region}.",
        ),
        ("{Text}.",),
    ),
    "refer": Phrasings(
        (
            'Where is "{text}"?',
            'Which part of the image is "{text}"?',
            "Locate: {text}.",
            'Find what "{text}" refers to.',
            'Give the box of "{text}".',
            "Point at {text}.",
            'I mean "{text}". Where is that?',
        ),
        ("{boxes}", "Here {boxes}.", "It is at {boxes}.", "{Text} {boxes}."),
    ),
    "relate": Phrasings(
        (
            "What is the relation between {region} and {other}?",
            "How is {region} related to {other}?",
            "What connects {region} with {other}?",
            "Describe how {region} and {other} relate to each other.",
            "What has {region} to do with {other}?",
        ),
        ("The {name} {boxes} {clause} the {other_name} {other_boxes}.",),
    ),
    "caption": Phrasings(
        (
            "Describe the image and locate what you mention.",
            "Write a caption with boxes.",
            "What is in the image? Give the places too.",
            "Sum up the picture, and say where everything is.",
            "Give a grounded caption of this image.",
        ),
        ("{text}",),
    ),
    "plain_caption": Phrasings(
        (
            "Describe the image in one sentence, without boxes.",
            "Write a caption. No places, please.",
            "In one sentence and without coordinates, what does the picture show?",
        ),
        ("{text}",),
    ),
    "ground": Phrasings(
        (
            'Locate the things named in this sentence: "{plain}"',
            'Add boxes to this caption: "{plain}"',
            'Where in the image is what this sentence mentions? "{plain}"',
            'Repeat the sentence with the place of each thing: "{plain}"',
        ),
        ("{text}",),
    ),
    "presence": Phrasings(
        (
            "Is there {a_name} in the image?",
            "Do you see {a_name}?",
            "Does the image show {a_name}?",
            "Can {a_name} be seen in this picture?",
            "Is {a_name} anywhere in the image?",
        ),
        (),
    ),
    "presence_plural": Phrasings(
        (
            "Are there {name} in the image?",
            "Do you see any {name}?",
            "Does the image show {name}?",
            "Can {name} be seen in this picture?",
        ),
        (),
    ),
    "presence_no": Phrasings(
        (),
        (
            "No, there {verb} no {name} in the image.",
            "No, I see no {name}.",
            "No, the image shows no {name}.",
            "No, there {verb} no {name} to be seen.",
        ),
    ),
    "presence_yes": Phrasings(
        (),
        ("Yes, there {are} {known} {boxes}.", "Yes, I see {known} {boxes}.", "Yes, the image shows {known} {boxes}."),
    ),
    "verify": Phrasings(
        (
            "Is {region} {a_name}?",
            "Is the object {region} {a_name}?",
            "Would you say that {region} is {a_name}?",
            "Does {region} show {a_name}?",
            "I believe that {region} is {a_name}. Is it so?",
        ),
        (),
    ),
    "verify_no": Phrasings((), ("No, it is {a_name}.", "No, that is {a_name}.", "No, {region_box} is {a_name}.")),
    "verify_yes": Phrasings((), ("Yes, it is {a_name}.", "Yes, that is {a_name}.", "Yes, {region_box} is {a_name}.")),
    "count": Phrasings(
        (
            "Is it true that there {are} {counted} in the image?",
            "Do you count {counted}?",
            "Does the picture show exactly {counted}?",
            "I count {counted}. Is that right?",
        ),
        (),
    ),
    "count_no": Phrasings((), ("No, there {are} {counted} {boxes}.", "No, I see {counted} {boxes}.")),
    "count_yes": Phrasings((), ("Yes, there {are} {counted} {boxes}.", "Yes, I see {counted} {boxes}.")),
    "relation": Phrasings(
        (
            "Is {region} {predicate} {other}?",
            "Would you say that {region} is {predicate} {other}?",
            "Do I see it right that {region} is {predicate} {other}?",
        ),
        (),
    ),
    "relation_no": Phrasings((), ("No, the {name} {boxes} {verb} {predicate} the {other_name} {other_boxes}.",)),
    "relation_yes": Phrasings((), ("Yes, the {name} {boxes} {verb} {predicate} the {other_name} {other_boxes}.",)),
    "phrase": Phrasings(
        (
            'Does "{text}" describe {region}?',
            'Is "{text}" true of {region}?',
            'Would "{text}" be right for {region}?',
            'Somebody wrote "{text}" about {region}. Is that correct?',
        ),
        (),
    ),
    "phrase_no": Phrasings((), ('No, it is rather "{text}".', 'No, "{text}" would be right.', 'No. It should say "{text}".')),
    "phrase_yes": Phrasings((), ('Yes, "{text}" is right.', 'Yes, it is "{text}".', 'Yes. "{text}" fits.')),
}


def ask(kind: str, rng: Random, **words: object) -> str:
    """A question of a kind, filled in."""
    return rng.choice(TEMPLATES[kind].questions).format(**words)


def answer(kind: str, rng: Random, **words: object) -> str:
    """An answer of a kind, filled in."""
    return rng.choice(TEMPLATES[kind].answers).format(**words)
