"""Conversations that the platform keeps, as its clients see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ferret_core.answer import FinishReason
from ferret_core.geometry import ImageSize, Region
from ferret_core.grounding import Span
from ferret_core.prompt import Turn

Rating = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class ConversationTurn(Turn):
    """A question, as much of its answer as there is, and what became of it. Serves as history, too."""

    answer: str = ""
    """Empty if there is none (yet)."""
    spans: tuple[Span, ...] = ()
    """The phrases it locates."""
    finish_reason: FinishReason | None = None
    """None while the answer is being written, and if it never came to its end."""
    model: str = ""
    """The model that was asked; empty for a turn from elsewhere."""
    rating: Rating | None = None
    """What somebody thinks of the answer."""
    comment: str = ""
    """Said with the rating."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers about one image."""

    id: str
    """Random: whoever knows it can read the conversation and go on with it."""
    image_id: str
    """Of the image it is about."""
    size: ImageSize
    """Of the image, in pixels."""
    regions: dict[int, Region]
    """By the N of their `[regionN]`."""
    turns: tuple[ConversationTurn, ...]
    """Oldest first."""
