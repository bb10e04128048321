"""The conversation format: how turns, the image and the regions become the text a Ferret reads.

    SYSTEM USER: <image>\\nQUESTION ASSISTANT: ANSWER</s>USER: QUESTION ASSISTANT:

A region is referred to as `[region0]`, `[region1]`, ... in a question or an answer. In the prompt it becomes its
coordinates on the 1000 x 1000 grid, a space and `<region_fea>`, whose embedding the model replaces by the region's
(the hybrid region representation, paper section 3.1). One `<region_fea>` per mention, in reading order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ferret_core.geometry import Box, ImageSize, Region, to_bins

Regions = Mapping[int, Region] | Sequence[Region]
"""Regions by the N of their `[regionN]`; a sequence is numbered from 0."""

IMAGE_TOKEN = "<image>"
REGION_TOKEN = "<region_fea>"
EOS_TOKEN = "</s>"
RESERVED = (IMAGE_TOKEN, REGION_TOKEN, EOS_TOKEN, "<s>", "<unk>")

# Part of the format of the published checkpoints: the trailing space is theirs.
SYSTEM = (
    "A chat between a human and an AI that understands visuals. In images, [x, y] denotes points: top-left [0, 0], "
    "bottom-right [width-1, height-1]. Increasing x moves right; y moves down. Bounding box: [x1, y1, x2, y2]. "
    "Image size: 1000x1000. Follow instructions. "
)

REGION_MENTION = re.compile(r"\[region(\d+)\]")
BOX_MENTION = re.compile(r"\[box(\d+)\]")
_ANSWER = re.compile(rf" ASSISTANT:(.*?{re.escape(EOS_TOKEN)})", re.DOTALL)


class PromptError(ValueError):
    """A question that cannot be put to the model. The message says what to change."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and, unless it is the one being asked, its answer."""

    question: str
    answer: str | None = None


def format_bins(region: Region, size: ImageSize) -> str:
    """`[x, y]` for a point, `[x1, y1, x2, y2]` otherwise, on the 1000 x 1000 grid."""
    return f"[{', '.join(map(str, to_bins(region.coordinates(size), size)))}]"


def mentioned_regions(text: str) -> list[int]:
    """Numbers of the `[regionN]` placeholders of `text`, in reading order, repeats included."""
    return [int(number) for number in REGION_MENTION.findall(text)]


def mentioned_boxes(text: str) -> list[int]:
    """Numbers of the `[boxN]` placeholders of `text`, in reading order, repeats included."""
    return [int(number) for number in BOX_MENTION.findall(text)]


def write_boxes(text: str, boxes: Sequence[Box], size: ImageSize) -> str:
    """`text` with every `[boxN]` as `[x1, y1, x2, y2]` on the 1000 x 1000 grid: what a model answers."""
    return BOX_MENTION.sub(lambda match: format_bins(boxes[int(match[1])], size), text)


def answer_ranges(prompt: str) -> list[tuple[int, int]]:
    """Where the answers of a prompt are, each with its `</s>`: start and end, in characters. What a model learns."""
    return [match.span(1) for match in _ANSWER.finditer(prompt)]


def number_regions(regions: Regions) -> dict[int, Region]:
    """Regions by the N of their `[regionN]`."""
    return dict(regions) if isinstance(regions, Mapping) else dict(enumerate(regions))


def check_text(text: str, regions: Mapping[int, Region], name: str) -> None:
    """Raises `PromptError` if a question or an answer, called `name` in the message, has a reserved token or an unknown
    region."""
    for token in RESERVED:
        if token in text:
            raise PromptError(f"{name}: {token!r} is reserved; point at a region with [region0] and name it in regions")
    for number in mentioned_regions(text):
        if number not in regions:
            known = ", ".join(f"[region{n}]" for n in sorted(regions)) or "none"
            raise PromptError(f"{name}: [region{number}] is not among the regions; known: {known}")


def write_turns(turns: Sequence[Turn], has_image: bool) -> str:
    """The text of a conversation: turns as they are, `<image>` before the first question, and `</s>` after every answer."""
    text = f"{SYSTEM} "
    for i, turn in enumerate(turns):
        image = f"{IMAGE_TOKEN}\n" if has_image and i == 0 else ""
        text += f"USER: {image}{turn.question} ASSISTANT:"
        if turn.answer is not None:
            text += f" {turn.answer}{EOS_TOKEN}"
    return text


def check_turns(turns: Sequence[Turn], regions: Mapping[int, Region]) -> None:
    """What `build_prompt` asks of turns, whatever the image. Raises `PromptError`."""
    if not turns or not turns[-1].question.strip():
        raise PromptError("question: must not be empty")
    for i, turn in enumerate(turns):
        last = i == len(turns) - 1
        if turn.answer is None and not last:
            raise PromptError(f"history[{i}].answer: every turn but the last needs one")
        check_text(turn.question, regions, "question" if last else f"history[{i}].question")
        if turn.answer is not None:
            check_text(turn.answer, regions, f"history[{i}].answer")


def build_prompt(turns: Sequence[Turn], regions: Mapping[int, Region], size: ImageSize | None) -> tuple[str, list[Region]]:
    """The text of a conversation about one image and the regions it mentions.

    Args:
        turns: the conversation; the last turn's answer is None when it is being asked.
        regions: the regions by the number of their placeholder, in image pixels.
        size: size of the image in pixels; None for a conversation without an image.

    Returns:
        The prompt, with `<image>` before the first question, and one region per `<region_fea>`, in order.

    Raises:
        PromptError: an unknown `[regionN]`, a reserved token, or no question.
        RegionError: a drawn region or a mask that does not fit the image.
    """
    check_turns(turns, regions)
    prompt = write_turns([Turn(turn.question.strip(), turn.answer) for turn in turns], has_image=bool(size))
    mentioned = mentioned_regions(prompt)
    if mentioned and not size:
        raise PromptError("image: regions need an image")
    texts = {n: f"{format_bins(regions[n], size)} {REGION_TOKEN}" for n in set(mentioned)} if size else {}
    return REGION_MENTION.sub(lambda match: texts[int(match[1])], prompt), [regions[number] for number in mentioned]
