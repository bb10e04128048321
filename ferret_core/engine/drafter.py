"""What may come next, guessed from what stood before: a step that has room computes it along, and keeps what is right.

Prompt lookup (Saxena 2023), in which all numbers are alike: not only do names and phrases come again, but also the form of a
box. After "[96, 259, 420, 626], a pear [12" there come ", ", a number, and so on to the "]"; numbers themselves are not
guessed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence

_NUMBER = -1
_PLACES = 4  # the latest at which a pair of tokens stood
_LOOK_BACK = 16  # tokens that tell the better one


class Drafter:
    """Of one sequence."""

    def __init__(self, numbers: Container[int]) -> None:
        """
        Args:
            numbers: ids of the tokens that are digits.
        """
        self._numbers = numbers
        self._kinds: list[int] = []
        self._after: dict[tuple[int, ...], deque[int]] = {}

    def draft(self, token_ids: Sequence[int], most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow; none where nothing like the end was there before.

        Args:
            token_ids: of prompt and answer; those of one call begin with those of the call before.
            most: to be guessed.
        """
        for token in token_ids[len(self._kinds) :]:
            self._kinds.append(_NUMBER if token in self._numbers else token)
            if len(self._kinds) > 2:
                pair = (self._kinds[-3], self._kinds[-2])
                self._after.setdefault(pair, deque(maxlen=_PLACES)).appendleft(len(self._kinds) - 1)
        place = max(self._after.get(tuple(self._kinds[-2:]), ()), key=self._alike, default=len(token_ids))
        guessed: list[int] = []
        for token in token_ids[place : place + most]:
            if token in self._numbers:
                break
            guessed.append(token)
        return tuple(guessed)

    def _alike(self, place: int) -> int:
        """How many tokens before a place are like the last ones."""
        count, end = 0, len(self._kinds)
        while count < min(_LOOK_BACK, place) and self._kinds[place - 1 - count] == self._kinds[end - 1 - count]:
            count += 1
        return count
