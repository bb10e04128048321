"""Boxes out of text: which words of an answer are where.

An answer carries boxes as `[x1, y1, x2, y2]` on the 1000 x 1000 grid, after the phrase they locate:

    A dog [12, 40, 380, 977] left of two cakes [500, 610, 640, 880] [700, 600, 850, 890].

`GroundingParser` reads such text while it arrives in arbitrary pieces; `find_spans` reads it at once. Both give the same
spans. What is not exactly four integers, or has x2 < x1 or y2 < y1, is no box and stays text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ferret_core.geometry import Box, ImageSize, from_bins

_BOX = re.compile(r"\[(\d{1,4}), ?(\d{1,4}), ?(\d{1,4}), ?(\d{1,4})\]")
_UNFINISHED_BOX = re.compile(r" ?\[[\d, ]*$")
_LONGEST_BOX = len("[1000, 1000, 1000, 1000]")

# Between two boxes of the same phrase there is nothing but this.
_JOINED = re.compile(r"(\s|,|;|&|and|or)*")
# A phrase does not reach back over these ...
_BOUNDARY = re.compile(r"[.!?;:,()\[\]\n]+(?=\s|$)|[\[\]()\n]")
# ... nor over these words: "A dog is in front of the cake [box]" locates the cake.
_BREAKS = {
    "and", "or", "but", "with", "while", "near", "beside", "behind", "under", "over", "above", "below", "between", "toward",
    "towards", "against", "is", "are", "was", "were", "has", "have", "holding", "wearing", "shows", "contains", "that",
    "which", "who", "there", "to", "at", "by", "from", "into", "onto", "on", "in", "of", "than", "relative", "for", "i", "see",
}  # fmt: skip
# "The dog left of the cake is located at [box]": the box is the subject's, all of it.
_COPULAS = {"is", "are", "was", "were"}
_TRAILING = _COPULAS | {"located", "found", "situated", "positioned", "here", "at", "in", "region", "box"}
_DETERMINERS = {
    "a", "an", "the", "this", "that", "these", "those", "his", "her", "its", "their", "my", "your", "our", "some", "any",
    "another", "each", "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
}  # fmt: skip
_WORD = re.compile(r"\S*\w")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A phrase of an answer and the place it names."""

    phrase: str
    """The words; empty if the box stands alone."""
    box: Box
    """In pixels of the image, clamped to it."""
    start: int
    """Offset of the phrase in the answer, in characters."""
    end: int
    """End of the phrase."""
    box_start: int
    """Offset of the box's text in the answer."""
    box_end: int
    """End of the box's text."""


class GroundingParser:
    """Finds spans in a text that arrives in pieces.

        parser = GroundingParser(ImageSize(640, 480))
        for piece in pieces:
            for span in parser.feed(piece): ...

    A span is returned by the very `feed` that completes its box.
    """

    def __init__(self, size: ImageSize) -> None:
        self.size = size
        self.text = ""
        self._searched = 0  # no box starts before this
        self._last: Span | None = None

    def feed(self, piece: str) -> list[Span]:
        """Takes the next piece of text; returns the spans that it completes."""
        self.text += piece
        spans = []
        while match := _BOX.search(self.text, self._searched):
            self._searched = match.end()
            span = self._span(match)
            if span:
                spans.append(span)
                self._last = span
        self._searched = max(self._searched, len(self.text) - _LONGEST_BOX)
        return spans

    def _span(self, match: re.Match[str]) -> Span | None:
        x1, y1, x2, y2 = (int(group) for group in match.groups())
        if x2 < x1 or y2 < y1:
            return None
        box = Box(*from_bins((x1, y1, x2, y2), self.size)).clamp(self.size)
        if self._last and _JOINED.fullmatch(self.text, self._last.box_end, match.start()):
            start, end = self._last.start, self._last.end
        else:
            start, end = _phrase(self.text, self._last.box_end if self._last else 0, match.start())
        return Span(phrase=self.text[start:end], box=box, start=start, end=end, box_start=match.start(), box_end=match.end())


def find_spans(text: str, size: ImageSize) -> list[Span]:
    """All spans of a text about an image of `size` pixels."""
    return GroundingParser(size).feed(text)


def without_boxes(text: str) -> str:
    """The words of an answer: every box, and the space before it, left out."""
    return re.sub(rf" ?{_BOX.pattern}", "", text)


def without_unfinished_box(text: str) -> str:
    """An answer on its way, up to a box that has only begun."""
    return _UNFINISHED_BOX.sub("", text)


def _phrase(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the phrase that ends just before a box lies in `text[start:end]`."""
    for boundary in _BOUNDARY.finditer(text, start, end):
        if text[boundary.end() : end].strip():
            start = boundary.end()
    matches = list(_WORD.finditer(text, start, end))
    words = [match.group().lower() for match in matches]
    last = len(words)
    while last and words[last - 1].strip(",.:") in _TRAILING:
        last -= 1
    if _COPULAS.intersection(words[last:]):
        first = next((i for i in range(last) if words[i] not in _BREAKS), last)
    else:
        first = last
        while first and words[first - 1] not in _BREAKS:
            first -= 1
            if words[first] in _DETERMINERS:
                break
    return (matches[first].start(), matches[last - 1].end()) if first < last else (end, end)
