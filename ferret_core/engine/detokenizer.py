"""Token ids to text while they come: only whole characters, no stop text, no white space at either end."""

from __future__ import annotations

import re
from typing import Any

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # of tokenizers that fall back to bytes, as LLaMA's


class Detokenizer:
    """Turns the growing list of an answer's tokens into pieces of text.

    Text is held back while it may still change: an unfinished character, trailing white space, or what could be the
    beginning of a stop text.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens: list[int] = []
        self.text = ""
        """All text so far, without what is held back."""
        self.stopped = False
        """A stop text was met; nothing more will come."""

    def feed(self, token: int) -> str:
        """Takes the next token; returns the text that became certain."""
        self.tokens.append(token)
        return self._advance(self._decode(self.tokens[: self._whole()]), final=False)

    def finish(self) -> str:
        """The text that was still held back when the answer ended."""
        return "" if self.stopped else self._advance(self._decode(self.tokens), final=True)

    def _whole(self) -> int:
        """Tokens before a run of single bytes at the end: what these spell is known when the run is over."""
        end = len(self.tokens)
        while end and _BYTE.fullmatch(self.tokenizer.convert_ids_to_tokens(self.tokens[end - 1]) or ""):
            end -= 1
        return end

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True).lstrip()

    def _advance(self, decoded: str, final: bool) -> str:
        found = [at for at in (decoded.find(text) for text in self.stop) if at >= 0]
        if found:
            self.stopped = True
            text = decoded[: min(found)].rstrip()
        elif final:
            text = decoded.rstrip()
        else:
            text = decoded.rstrip("�").rstrip()
            text = text[: len(text) - max((_overlap(text, stop) for stop in self.stop), default=0)]
        if len(text) <= len(self.text):
            return ""
        piece, self.text = text[len(self.text) :], text
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
