"""What stands around a model, and needs no weights: a question on its way in, an answer on its way out.

`FerretPredictor` and the serving gateway share it, so that the same question makes the same prompt everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    for number, region in numbered.items():
        try:
            region.to_mask(size)
        except ValueError as error:
            raise type(error)(f"regions[{number}]: {error}") from error
    turns = [*history, Turn(question)]
    room = context_length - max_new_tokens
    for dropped in range(len(turns)):
        prompt, mentioned = build_prompt(turns[dropped:], numbered, size)
        ids = processor.token_ids(prompt)
        if len(ids) <= room:
            return PreparedQuestion(tuple(ids), tuple(mentioned), dropped)
    raise PromptError(
        f"question: {len(ids)} tokens with its image and regions, but the context of {context_length} leaves room for "
        f"{room} beside max_new_tokens = {max_new_tokens}; shorten the question or ask for fewer new tokens"
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
