"""Token ids to text while they come: only whole characters, no stop text, no white space at either end."""

from __future__ import annotations

import re
from typing import Any

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # of tokenizers that fall back to bytes, as LLaMA's


class Detokenizer:
    """Turns the growing list of an answer's tokens into pieces of text.

    Text is held back while it may still change: an unfinished character, trailing white space, or what could be the
    beginning of a stop text. Only the newest tokens are decoded, with those before them on which their white space depends.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens: list[int] = []
        self.text = ""
        """All text so far, without what is held back."""
        self.stopped = False
        """A stop text was met; nothing more will come."""
        self._special = frozenset(tokenizer.all_special_ids)
        self._decoded = ""  # text of the tokens before `_read`
        self._context = self._read = 0  # the newest tokens that were decoded, and their end

    def feed(self, token: int) -> str:
        """Takes the next token; returns the text that became certain."""
        self.tokens.append(token)
        return self._advance(self._decode(self._whole()), final=False)

    def finish(self) -> str:
        """The text that was still held back when the answer ended."""
        return "" if self.stopped else self._advance(self._decode(len(self.tokens)), final=True)

    def _whole(self) -> int:
        """Tokens before a run of single bytes at the end: what these spell is known when the run is over.

        Special tokens are left out of the text and do not end a run.
        """
        end = len(self.tokens)
        while end and self._joins(self.tokens[end - 1]):
            end -= 1
        return end

    def _joins(self, token: int) -> bool:
        return token in self._special or bool(_BYTE.fullmatch(self.tokenizer.convert_ids_to_tokens(token) or ""))

    def _decode(self, end: int) -> str:
        """Text of the tokens before `end`; what is whole in it need not be decoded again."""
        before, after = (self._text(self.tokens[self._context : each]) for each in (self._read, end))
        decoded = self._decoded + after[len(before) :]
        if len(after) > len(before) and not after.endswith("�"):
            self._decoded, self._context, self._read = decoded, self._read, end
        return decoded.lstrip()

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True) if tokens else ""

    def _advance(self, decoded: str, final: bool) -> str:
        seen = max(0, len(self.text) - max(map(len, self.stop), default=0))
        found = [at for at in (decoded.find(text, seen) for text in self.stop) if at >= 0]
        if found:
            self.stopped = True
            text = decoded[: min(found)].rstrip()
        elif final:
            text = decoded.rstrip()
        else:
            text = decoded.rstrip("�").rstrip()
            text = text[: len(text) - max((_overlap(text, stop) for stop in self.stop), default=0)].rstrip()
        if len(text) <= len(self.text):
            return ""
        piece, self.text = text[len(self.text) :], text
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
