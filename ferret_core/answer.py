"""What comes back for a question, in pieces or at once. The same types locally and over the wire."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ferret_core.grounding import Span

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next words of the answer."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer took."""

    prompt_tokens: int
    """Tokens of the prompt, image patches included."""
    completion_tokens: int
    """Tokens of the answer."""
    dropped_turns: int = 0
    """Oldest turns of the history that did not fit the context and were left out."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an answer: `stop` where the model ended it, `length` at the token limit."""

    reason: FinishReason
    usage: Usage


AnswerEvent = TextDelta | Span | Finish


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: its text, the phrases it locates, and what it took."""

    text: str
    spans: tuple[Span, ...]
    usage: Usage
    finish_reason: FinishReason

    @classmethod
    def collect(cls, events: Iterable[AnswerEvent]) -> Answer:
        """From the events of a stream. Raises `RuntimeError` if it has no end."""
        text, spans, finish = [], [], None
        for event in events:
            match event:
                case TextDelta(piece):
                    text.append(piece)
                case Span():
                    spans.append(event)
                case Finish():
                    finish = event
        if finish is None:
            raise RuntimeError("the answer ended without a finish event")
        return cls("".join(text), tuple(spans), finish.usage, finish.reason)
