"""Names in answers: is one there, and which is it?"""

from __future__ import annotations

import re

from ferret_core.geometry import ImageSize
from ferret_core.grounding import find_spans, without_boxes

_IT_IS = re.compile(
    r"^((it|this|that|they|these|those|the (object|region|thing))('s|'re| is| are) )?((an?|the|some) )?", re.IGNORECASE
)


def says(answer: str, name: str) -> bool:
    """Whether a name is in an answer, as whole words."""
    return re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", answer.lower()) is not None


def name_in(answer: str, size: ImageSize) -> str:
    """What "It is a dog [12, 40, 380, 977]." names: "dog". Of an answer without a box, what is left of it without "It is"."""
    spans = [span.phrase for span in find_spans(answer, size) if span.phrase]
    words = _IT_IS.sub("", " ".join((spans[0] if spans else without_boxes(answer)).split()))
    return words.split(",")[0].strip(" .!")
