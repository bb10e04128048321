"""Boxes out of an answer as the original's scripts read them: what they score, the paper's figures score.

Brackets are taken as they come: what stands between `[` and `]` is a box, and its first four numbers count. Nothing is clamped
to the picture, corners may be swapped, and one bracket with no numbers in it spoils the whole answer. What a person should be
shown is read by `grounding.find_spans` instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from ferret_core.geometry import Box, ImageSize, from_bins


class MalformedAnswerError(ValueError):
    """An answer that the original's scripts cannot read. Counts as wrong."""


@dataclass(frozen=True, slots=True)
class NamedBox:
    """A box and the words before it."""

    phrase: str
    box: Box
    """In pixels of the picture, truncated to whole ones, not clamped."""


def read_boxes(text: str, size: ImageSize) -> list[NamedBox]:
    """The boxes of an answer about a picture of `size` pixels, in order. Raises `MalformedAnswerError`."""
    found: list[NamedBox] = []
    phrase, start = "", 0
    for end, character in enumerate(text):
        if character == "[":
            phrase = text[start:end].strip()
            start = end + 1
        elif character == "]":
            try:
                x1, y1, x2, y2, *_ = from_bins(tuple(int(number) for number in text[start:end].split(",")), size)
            except (ValueError, OverflowError) as error:
                raise MalformedAnswerError(f"no box: {text[start:end]!r}") from error
            found.append(NamedBox(phrase, Box(x1, y1, x2, y2)))
            start = end + 3  # a box ends with "]. "; where it does not, two letters of the next phrase are lost
    return found
