"""Ferret-Bench: referring description, referring reasoning and grounding in conversation, judged by a language model.

The published files are read as they are: questions, context and reference answers in three directories, and `rule.json` with
what to tell the judge. The judge sees the context, the question, the reference as Assistant 1 and the answer as Assistant 2,
and begins with two numbers. The score of a part is the sum of the second ones divided by that of the first ones (paper section
5.4).

Boxes are written from 0 to 1 in these files: in questions they become regions, and those of answers are written so for the
judge. Judging is a second evaluation, with the judge as the one who is asked: it goes on where it stopped, and is scored again
for nothing.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ferret_core.data.build.language_model import LanguageModel, RefusedError
from ferret_core.data.build.reading import Problems, lines, load_json
from ferret_core.evaluation.asking import Asker
from ferret_core.evaluation.benchmark import (
    Benchmark,
    Figure,
    Item,
    Joint,
    Paper,
    Prediction,
    Sums,
    Tally,
    divide,
    ratio,
    share,
)
from ferret_core.geometry import Box, ImageSize, Point
from ferret_core.grounding import find_spans
from ferret_core.images import open_image

PARTS = ("refer_caption", "refer_reason", "ground_conv")
PAPER: dict[str, Paper] = {
    "refer_desc": {"7B": 0.687, "13B": 0.706},
    "refer_reason": {"7B": 0.673, "13B": 0.687},
    "ground_conv": {"7B": 0.575, "13B": 0.597},
    "all": {"7B": 0.645, "13B": 0.663},
}
_SHARE = r"\s*([01](?:\.\d+)?)\s*"
_REGION = re.compile(rf"\[{_SHARE},{_SHARE}(?:,{_SHARE},{_SHARE})?\]")
_SCORES = re.compile(r"\s*(\d+(?:\.\d+)?)[\s,]+(\d+(?:\.\d+)?)\s*(?:\n|$)")
UNREADABLE = (-1.0, -1.0)
"""Scores of a review that has none."""


def grade_answer(prediction: Prediction) -> Tally:
    """Only whether there is an answer: it is for the judge to say how good it is."""
    return {"items": 1.0, "answered": float(bool((prediction.answer or "").strip()))}


def grade_review(prediction: Prediction) -> Tally:
    """The judge's two scores, as the protocol reads them and leniently."""
    reference, ours = read_scores(prediction.answer or "")
    tally = {"items": 1.0, "reference": reference, "ours": ours, "above the reference": ours - reference}
    tally["unreadable reviews"] = float((reference, ours) == UNREADABLE)
    if match := _SCORES.match(prediction.answer or ""):
        tally |= {"strict reviews": 1.0, "strict reference": float(match[1]), "strict ours": float(match[2])}
    return tally


def read_scores(review: str) -> tuple[float, float]:
    """The two numbers of a review's first line, with one space or comma between them; else `UNREADABLE`.

    So LLaVA's scripts read it, and those that follow them.
    """
    try:
        reference, ours = map(float, review.split("\n")[0].replace(",", " ").split(" "))
    except ValueError:
        return UNREADABLE
    return (reference, ours) if math.isfinite(reference + ours) else UNREADABLE


def _relative(ours: str, reference: str) -> Callable[[Sums], np.ndarray]:
    """Our scores by the reference's; NaN where that has none."""

    def value(sums: Sums) -> np.ndarray:
        return divide(sums[ours], np.maximum(sums[reference], 0.0))

    return value


def mean_of_parts(predictions: Sequence[Prediction]) -> Joint:
    """The paper's average: the mean of the parts' scores, each counting as much as the others."""
    parts = sorted({each.item.group for each in predictions})
    scores = [(each.item.group, *read_scores(each.answer or "")) for each in predictions]
    tallies = [{f"reference {part}": reference, f"ours {part}": ours} for part, reference, ours in scores]

    def value(sums: Sums) -> np.ndarray:
        return np.mean([_relative(f"ours {part}", f"reference {part}")(sums) for part in parts], axis=0)

    figure = Figure(name="relative to the reference, mean of the parts", value=value, paper={"all": PAPER["all"]})
    return Joint(tallies={"all": tallies}, figures=(figure,)) if len(parts) > 1 else Joint()


ANSWERS = Benchmark(
    name="bench",
    protocol="Ferret-Bench, before it is judged.",
    grade=grade_answer,
    figures=(share("answered", "answered"),),
    quality="answered",
    max_new_tokens=512,
)

REVIEWS = Benchmark(
    name="bench-reviews",
    protocol="The judge's scores of the answers, summed, divided by its scores of the reference answers. A review whose first "
    "line is not two numbers counts as -1 on either side; strict: on neither, and more than one space may stand between them.",
    grade=grade_review,
    figures=(
        Figure(name="relative to the reference", value=_relative("ours", "reference"), of="items", paper=PAPER),
        Figure(
            name="relative to the reference, strict", value=_relative("strict ours", "strict reference"), of="strict reviews"
        ),
        Figure(name="mean score", value=ratio("ours", "items"), percent=False),
        Figure(name="mean score of the reference", value=ratio("reference", "items"), percent=False),
    ),
    counts=("unreadable reviews",),
    joint=mean_of_parts,
    quality="above the reference",
    max_new_tokens=1024,
)


def read_bench(root: Path, images: Path) -> Iterator[Item]:
    """Questions of the three parts; regions need the sizes of the pictures, COCO's val2017.

    Raises:
        ValueError: naming the file, the question or the picture that is missing or broken.
    """
    rules = load_json(root / "rule.json")
    for part in PARTS:
        context, reference = _by_id(root / part / "context.jsonl"), _by_id(root / part / "answer.jsonl")
        for number, row in _by_id(root / part / "question.jsonl").items():
            place = f"{root / part / 'question.jsonl'}: question {number}"
            if number not in context or number not in reference or row.get("category") not in rules:
                raise ValueError(
                    f"{place}: has no context, no reference answer, or no rule of category {row.get('category')!r}"
                )
            with Problems().at(place):
                path, rule = images / row["image"], rules[row["category"]]
                if not path.is_file():
                    raise ValueError(f"{path} is not there; --images says where to look")
                size = ImageSize(*open_image(path).size)
                text, regions = to_regions(row["text"], size)
                yield Item(
                    id=f"{part}-{number}",
                    group=row["category"],
                    image=row["image"],
                    size=size,
                    question=text,
                    regions=regions,
                    expected={
                        "question": row["text"],
                        "reference": reference[number]["text"],
                        "context": context[number]["text"],
                        "rule": rule["prompt"],
                        "role": rule["role"],
                    },
                )


def to_regions(text: str, size: ImageSize) -> tuple[str, tuple[Box | Point, ...]]:
    """A question with its boxes and points, from 0 to 1, as `[region0]`, ..., and these in pixels of a picture of `size`.

    Raises `ValueError` if a box ends before it begins, or the text has a `[region0]` of its own.
    """
    if "[region" in text:
        raise ValueError(f"text: has [regionN], which stands for what is pointed at: {text!r}")
    regions: list[Box | Point] = []

    def mention(match: re.Match[str]) -> str:
        numbers = [float(value) * size[i % 2] for i, value in enumerate(filter(None, match.groups()))]
        region = Box(*numbers).clamp(size) if len(numbers) == 4 else Point(*numbers)
        region.to_mask(size)  # or a clear error
        regions.append(region)
        return f"[region{len(regions) - 1}]"

    return _REGION.sub(mention, text), tuple(regions)


def with_shares(text: str) -> str:
    """An answer with its boxes from 0 to 1, three decimals, as the judge reads them."""
    grid = ImageSize(1000, 1000)
    for span in reversed(find_spans(text, grid)):
        shares = ", ".join(f"{value / 1000:.3f}" for value in span.box.coordinates(grid))
        text = f"{text[: span.box_start]}[{shares}]{text[span.box_end :]}"
    return text


def to_judge(predictions: Iterable[Prediction]) -> list[Item]:
    """What the judge is asked about each answer."""
    return [
        replace(each.item, question=review_question(each), regions=(), expected={"answer": each.answer or ""})
        for each in predictions
    ]


def review_question(prediction: Prediction) -> str:
    """Context, question, both answers, and the rule."""
    facts = prediction.item.expected
    role = facts["role"]
    answers = (facts["reference"], with_shares(prediction.answer or ""))
    both = "".join(f"[{role} {number}]\n{text}\n\n[End of {role} {number}]\n\n" for number, text in enumerate(answers, start=1))
    return f"[Context]\n{facts['context']}\n\n[Question]\n{facts['question']}\n\n{both}[System]\n{facts['rule']}\n"


def ask_judge(judge: LanguageModel, at_a_time: int = 4) -> Asker:
    """Asks a language model; it may answer as long as it likes."""

    def ask(items: Sequence[Item], max_new_tokens: int) -> list[str | None]:
        with ThreadPoolExecutor(at_a_time) as pool:
            return list(pool.map(ask_one, items))

    def ask_one(item: Item) -> str | None:
        try:
            return judge.ask("You are a fair judge.", item.question, str)
        except RefusedError as error:
            logging.warning("cannot be judged: %s: %s", item.id, error)
            return None

    return ask


def spent(cache: Path) -> Counter[str]:
    """Requests and tokens of all reviews that a judge's cache holds, whenever they were made."""
    total: Counter[str] = Counter()
    for path in cache.glob("*.json"):
        usage = load_json(path).get("usage") or {}
        total.update(requests=1, **{name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")})
    return total


def estimate(items: Iterable[Item]) -> Counter[str]:
    """About what judging would take, were every answer like the reference: four characters a token, 250 tokens a review."""
    total: Counter[str] = Counter()
    for item in items:
        question = review_question(Prediction(item, item.expected["reference"]))
        total.update(requests=1, prompt_tokens=len(question) // 4, completion_tokens=250)
    return total


def cost(tokens: Counter[str], price_in: float, price_out: float) -> str:
    """Tokens in words, and their price if prices, in dollars a million tokens, are given."""
    text = f"{tokens['requests']:,} requests, {tokens['prompt_tokens']:,} tokens in, {tokens['completion_tokens']:,} out"
    dollars = (tokens["prompt_tokens"] * price_in + tokens["completion_tokens"] * price_out) / 1e6
    return f"{text}, ${dollars:,.2f}" if dollars else text


def _by_id(path: Path) -> dict[Any, dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"{path} is not there; it is one of Ferret-Bench's published files")
    rows: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                row = json.loads(line)
                rows[row["question_id"]] = {"text": str(row["text"]), **row}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: line {number}: must be an object with question_id and text: {error!r}") from error
    return rows
