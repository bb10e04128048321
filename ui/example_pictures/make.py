"""Chooses the pictures of this directory: test scenes about which the bundled checkpoint answers every preset question right.

python ui/example_pictures/make.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from ferret_core.data.playground import Example, playground_example
from ferret_core.data.pointing import Gesture
from ferret_core.evaluation.benchmark import Prediction
from ferret_core.evaluation.playground import grade, to_item
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import Turn
from ui.regions import regions_to_json

HERE = Path(__file__).parent
EXAMPLES: dict[str, tuple[Gesture, tuple[str, ...]]] = {
    "Point": ("point", ("name", "verify")),
    "Box": ("box", ("name", "choose_name")),
    "Scribble": ("scribble", ("name", "relate")),
    "Polygon": ("polygon", ("name", "category")),
    "Two regions": ("box", ("relate", "choose_region")),
    "Find": ("point", ("locate",)),
}
"""What is pointed with, and the kinds of questions asked, by title."""
FEWEST_OBJECTS = 4


def main() -> None:
    """Writes `examples.json` and its pictures."""
    predictor = FerretPredictor.from_pretrained("playground", device="cpu")
    entries, scenes = [], count()
    for title, (gesture, kinds) in EXAMPLES.items():
        index, example = next(right(predictor, gesture, kinds, scenes))
        name = f"{title.lower().replace(' ', '-')}.webp"
        example.image.save(HERE / name, lossless=True)
        entries.append(
            {
                "title": title,
                "picture": name,
                "regions": regions_to_json(example.regions),
                "questions": [turn.question for turn in example.record.turns],
                "answers": [re.sub(r" \[box\d+\]", "", turn.answer or "") for turn in example.record.turns],
            }
        )
        print(f"{title}: scene {index}")
    (HERE / "examples.json").write_text(json.dumps(entries, indent=1) + "\n")


def right(
    predictor: FerretPredictor, gesture: Gesture, kinds: tuple[str, ...], scenes: Iterator[int]
) -> Iterator[tuple[int, Example]]:
    """Scenes with one question of each kind, all answered right."""
    for index in scenes:
        whole = playground_example("test", index, len(kinds), kinds, (gesture,))
        if whole.kinds != kinds or len(whole.scene.objects) < FEWEST_OBJECTS or not whole.record.boxes:
            continue
        predictor.set_image(whole.image)
        history: list[Turn] = []
        for turn, kind in zip(whole.record.turns, whole.kinds, strict=True):
            answer = predictor.ask(turn.question, whole.regions, history).text
            if not grade(Prediction(to_item(one_turn(whole, turn, kind)), answer))["right"]:
                break
            history.append(Turn(turn.question, answer))
        else:
            yield index, whole


def one_turn(example: Example, turn: Turn, kind: str) -> Example:
    """An example of one of its questions only."""
    return replace(example, record=replace(example.record, turns=(turn,)), kinds=(kind,))


if __name__ == "__main__":
    main()
