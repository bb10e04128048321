"""Accuracy on the playground's test split: regions named, phrases located, questions answered.

Every test scene is asked one question of each kind, and "What is [region0]?" once for each way of pointing. Answers are
greedy. Scoring:

* named      the words of the answer, boxes aside, are exactly the right ones;
* located    every expected box has an answered one with IoU >= 0.5, in order and in number;
* yes or no  the first word is right.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ferret_core.data.playground import GESTURES, KINDS, Example, playground_example
from ferret_core.geometry import box_iou
from ferret_core.grounding import find_spans, without_boxes
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import Turn, build_prompt, write_boxes

# The figures that the bundled checkpoint is held to.
TARGETS = {"named (box)": 0.90, "named (point)": 0.85, "named (scribble)": 0.85, "located": 0.80, "yes or no": 0.90}


@dataclass(slots=True)
class Score:
    """Right answers of a kind."""

    right: int = 0
    total: int = 0

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % confidence interval of the accuracy."""
        if not self.total:
            return math.nan, math.nan
        z2, n, p = 1.96**2, self.total, self.accuracy
        middle = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = 1.96 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def evaluate_playground(
    predictor: FerretPredictor, scenes: int = 1000, batch_size: int = 32, progress: bool = True
) -> dict[str, Score]:
    """Asks about the first `scenes` scenes of the test split; accuracy by what was asked."""
    scores: dict[str, Score] = {}
    examples = _questions(scenes)
    total = scenes * (len(GESTURES) + len(KINDS) - 2)
    with tqdm(total=total, unit="question", disable=not progress, desc="playground") as bar:
        while batch := list(islice(examples, batch_size)):
            for example, answer in zip(batch, _answers(predictor, batch), strict=True):
                for name, right in grade(example, answer):
                    score = scores.setdefault(name, Score())
                    score.right += right
                    score.total += 1
            bar.update(len(batch))
            headline = {name: f"{scores[name].accuracy:.3f}" for name in TARGETS if name in scores}
            bar.set_postfix(headline)
    return dict(sorted(scores.items()))


def grade(example: Example, answer: str) -> Iterator[tuple[str, bool]]:
    """What an answer to a one-turn example got right, and what not."""
    record, kind = example.record, example.kinds[0]
    expected = write_boxes(record.turns[0].answer or "", record.boxes, record.size)
    same_words = without_boxes(answer) == without_boxes(expected)
    wanted = [span.box for span in find_spans(expected, record.size)]
    given = [span.box for span in find_spans(answer, record.size)]
    same_boxes = len(wanted) == len(given) and all(box_iou(a, b) >= 0.5 for a, b in zip(wanted, given, strict=True))
    if kind == "name":
        yield f"named ({record.regions[0].kind})", same_words
    elif kind in ("locate", "locate_by_relation") and wanted:
        yield "located", same_boxes
        yield f"located ({'by relation' if kind == 'locate_by_relation' else 'by name'})", same_boxes
    elif kind == "describe":
        yield "described (every word)", same_words
    else:
        yield "found absent" if kind == "locate" else kind.replace("_", " "), same_words
    if expected.startswith(("Yes", "No,")):
        yield "yes or no", answer.split(",")[0] == expected.split(",")[0]
    if wanted and same_words:
        yield "boxes of right answers", same_boxes


def report(scores: dict[str, Score], **facts: Any) -> str:
    """A Markdown table of scores, under a list of facts about the run."""
    lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    lines += ["", "| asked | right | of | accuracy | 95 % interval | target |", "|---|---:|---:|---:|---|---:|"]
    for name, score in scores.items():
        low, high = score.interval
        target = f"{TARGETS[name]:.0%}" if name in TARGETS else ""
        lines.append(f"| {name} | {score.right} | {score.total} | {score.accuracy:.1%} | {low:.1%} to {high:.1%} | {target} |")
    return "\n".join(lines) + "\n"


def write_report(directory: Path, scores: dict[str, Score], **facts: Any) -> None:
    """`report.md` and `report.json` in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.md").write_text(report(scores, **facts))
    values = {name: {"right": s.right, "total": s.total, "accuracy": round(s.accuracy, 4)} for name, s in scores.items()}
    (directory / "report.json").write_text(json.dumps({**facts, "scores": values}, indent=1) + "\n")


def _questions(scenes: int) -> Iterator[Example]:
    """One-turn examples; a kind that a scene does not lend itself to is left out."""
    for index in range(scenes):
        for gesture in GESTURES:
            yield playground_example("test", index, 1, kinds=("name",), gestures=(gesture,))
        for kind in KINDS:
            if kind not in ("name", "follow_up"):
                example = playground_example("test", index, 1, kinds=(kind,))
                if example.kinds:
                    yield example


@torch.inference_mode()
def _answers(predictor: FerretPredictor, examples: list[Example]) -> list[str]:
    """Greedy answers, batched."""
    model, processor = predictor.model, predictor.processor
    prompts, regions = [], []
    for example in examples:
        record = example.record
        prompt, mentioned = build_prompt([Turn(record.turns[0].question)], dict(enumerate(record.regions)), record.size)
        prompts.append(prompt)
        regions += mentioned
    inputs = processor([example.image for example in examples], prompts, regions).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    tokenizer = processor.tokenizer
    output = model.generate(
        **inputs, max_new_tokens=160, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    new = output[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
