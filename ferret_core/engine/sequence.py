"""One request on its way through the engine."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass

from ferret_core.answer import FinishReason
from ferret_core.engine.blocks import ROOT, BlockKey, block_key
from ferret_core.engine.detokenizer import Detokenizer
from ferret_core.engine.drafter import Drafter
from ferret_core.engine.prompt import Prompt, content
from ferret_core.engine.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Delta:
    """One token of an answer."""

    text: str
    """What became certain with it; may be empty."""
    completion_tokens: int
    """How many tokens the answer has by now."""
    finish_reason: FinishReason | None = None
    """Set in the last one."""
    token_id: int = 0
    """What was chosen."""


Receiver = abc.Callable[[Delta | Exception], None]
"""Is told every delta, or why there will be no more."""


class Sequence:
    """A prompt, the answer so far, and where their keys and values are."""

    def __init__(
        self,
        prompt: Prompt,
        params: SamplingParams,
        detokenizer: Detokenizer,
        receiver: Receiver,
        answer: abc.Sequence[int] = (),
        deadline: float = float("inf"),
        drafter: Drafter | None = None,
    ) -> None:
        self.prompt, self.params, self.detokenizer = prompt, params, detokenizer
        self.receiver, self.deadline, self._drafter = receiver, deadline, drafter
        self.token_ids = [*prompt.token_ids, *answer]
        for token in answer:
            detokenizer.feed(token)
        self.blocks: list[int] = []
        """The block table: position p is in block `blocks[p // size]`."""
        self.computed = 0
        """Positions, from the first, whose keys and values are in the cache."""
        self.cached: int | None = None
        """Positions that were there when it was first let in."""
        self.cancelled = False
        self._keys: list[BlockKey] = []

    def __len__(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.token_ids)

    @property
    def remaining(self) -> int:
        """Positions to compute before the next token can be chosen."""
        return len(self) - self.computed

    @property
    def answered(self) -> int:
        """Tokens of the answer."""
        return len(self) - len(self.prompt.token_ids)

    @property
    def most_positions(self) -> int:
        """That it can come to need: the last token of an answer is never looked back at."""
        return len(self.prompt.token_ids) + self.params.max_new_tokens - 1

    def key(self, block: int, size: int) -> BlockKey:
        """Of one of its full blocks, of `size` positions each."""
        while len(self._keys) <= block:
            start = len(self._keys) * size
            before = self._keys[-1] if self._keys else ROOT
            held = content(self.token_ids, self.prompt.segments, start, start + size)
            self._keys.append(block_key(before, held))
        return self._keys[block]

    def reusable_keys(self, size: int) -> abc.Iterator[BlockKey]:
        """Of its full blocks. One position is always left: the next token is chosen by what is computed there."""
        return (self.key(block, size) for block in range((len(self) - 1) // size))

    def draft(self, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may come before the last of the answer."""
        most = min(most, self.params.max_new_tokens - self.answered - 1)
        return self._drafter.draft(self.token_ids, most) if self._drafter and most > 0 else ()

    def append(self, token: int, eos: int | None) -> Delta:
        """Takes the token that was chosen."""
        self.token_ids.append(token)
        if token == eos or token in self.params.stop_token_ids:
            return Delta(self.detokenizer.finish(), self.answered, "stop", token)
        piece = self.detokenizer.feed(token)
        last = self.answered >= self.params.max_new_tokens
        if last:
            piece += self.detokenizer.finish()
        reason: FinishReason | None = "stop" if self.detokenizer.stopped else "length" if last else None
        return Delta(piece, self.answered, reason, token)
