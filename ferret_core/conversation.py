"""What stands around a model, and needs no weights: a question on its way in, an answer on its way out.

`FerretPredictor` and the serving gateway share it, so that the same question makes the same prompt everywhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ferret_core.answer import AnswerEvent, Finish, TextDelta, Usage
from ferret_core.engine import Delta
from ferret_core.geometry import ImageSize, Region
from ferret_core.grounding import GroundingParser
from ferret_core.model import FerretProcessor
from ferret_core.prompt import PromptError, Regions, Turn, build_prompt, number_regions


@dataclass(frozen=True, slots=True)
class PreparedQuestion:
    """A question, ready for the model."""

    input_ids: tuple[int, ...]
    """Expanded: N tokens for the image, one per mentioned region."""
    regions: tuple[Region, ...]
    """One per `<region_fea>`, in order."""
    dropped_turns: int
    """Oldest turns that did not fit."""


def check_regions(regions: Mapping[int, Region], size: ImageSize) -> None:
    """Raises `RegionError` if a region does not fit an image of `size` pixels."""
    for number, region in regions.items():
        try:
            region.to_mask(size)
        except ValueError as error:
            raise type(error)(f"regions[{number}]: {error}") from error


def prepare_question(
    question: str,
    regions: Regions,
    history: Sequence[Turn],
    *,
    processor: FerretProcessor,
    context_length: int,
    size: ImageSize,
    max_new_tokens: int,
) -> PreparedQuestion:
    """Checks a question about an image of `size` pixels and turns it into token ids.

    Args:
        question: points at regions with `[region0]`, `[region1]`, ...
        regions: in image pixels; a sequence is numbered from 0.
        history: earlier turns, oldest first; dropped from the oldest on if they do not fit.
        processor: of the model that will answer.
        context_length: most tokens of prompt and answer together.
        size: of the image, in pixels.
        max_new_tokens: room to leave for the answer.

    Raises:
        ValueError: with what to change (`PromptError`, `RegionError`).
    """
    numbered = number_regions(regions)
    check_regions(numbered, size)
    if max_new_tokens >= context_length:
        raise PromptError(f"max_new_tokens: must be less than the context of {context_length} tokens, got {max_new_tokens}")
    room = context_length - max_new_tokens
    turns = [*history, Turn(question)]

    @cache
    def prepared(dropped: int) -> PreparedQuestion:
        prompt, mentioned = build_prompt(turns[dropped:], numbered, size)
        return PreparedQuestion(tuple(processor.token_ids(prompt)), tuple(mentioned), dropped)

    whole = prepared(0)
    if len(whole.input_ids) <= room:
        return whole
    candidates = range(1, len(turns))  # the more turns are dropped, the fewer tokens remain
    fits = bisect_left(candidates, True, key=lambda dropped: len(prepared(dropped).input_ids) <= room)
    if fits < len(candidates):
        return prepared(candidates[fits])
    raise PromptError(
        f"question: {len(prepared(len(history)).input_ids)} tokens with its image and regions, but the context of "
        f"{context_length} leaves room for {room} beside max_new_tokens = {max_new_tokens}; shorten the question or ask for "
        "fewer new tokens"
    )


class AnswerStream:
    """Turns a decoder's deltas into the events of an answer: each span as soon as its box closes, the end with its usage."""

    def __init__(self, question: PreparedQuestion, size: ImageSize) -> None:
        self.question = question
        self.parser = GroundingParser(size)

    def feed(self, delta: Delta) -> list[AnswerEvent]:
        """The events that a delta brings about."""
        events: list[AnswerEvent] = []
        if delta.text:
            events += [TextDelta(delta.text), *self.parser.feed(delta.text)]
        if delta.finish_reason:
            usage = Usage(
                prompt_tokens=len(self.question.input_ids),
                completion_tokens=delta.completion_tokens,
                dropped_turns=self.question.dropped_turns,
            )
            events.append(Finish(delta.finish_reason, usage))
        return events
