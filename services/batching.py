"""Batches of what waits: a batch is what has come while the last one was computed, up to a limit.

Nobody waits for a batch to fill: who comes alone is computed at once, and alone. (`ray.serve.batch` makes its batches before
the last one is done, so without a wait they are all of one.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batches(Generic[Item, Result]):
    """A function of many items, shared by those who have a few each. To be used on one event loop."""

    def __init__(
        self,
        function: Callable[[Sequence[Item]], Sequence[Result]],
        max_size: int,
        begun: Callable[[int], None] = lambda size: None,
    ) -> None:
        """
        Args:
            function: one result for each item; it runs on a thread of its own, one batch after the other.
            max_size: most items of a batch; more wait for the next one.
            begun: is told of every batch, and of how many items it has.
        """
        self._function, self._max_size, self._begun = function, max_size, begun
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def compute(self, items: Sequence[Item]) -> list[Result]:
        """One result for each item, in their order, whatever batches they come into.

        What waits is not computed any more once its caller is cancelled or has heard of an error. Raises what `function` raises
        for an item alone: one that fails in a batch does not fail the others.
        """
        loop = asyncio.get_running_loop()
        entries = [(item, loop.create_future()) for item in items]
        self._waiting.extend(entries)
        if self._task is None:
            self._task = loop.create_task(self._compute_all())
        try:
            return await asyncio.gather(*(result for _, result in entries))
        finally:
            for _, result in entries:  # nobody waits for the others any more
                result.cancel()

    async def _compute_all(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            self._begun(len(batch))
            results = await loop.run_in_executor(self._thread, self._compute, [item for item, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():  # its caller went away
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
        self._task = None

    def _next(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        self._waiting = deque(entry for entry in self._waiting if not entry[1].done())
        batch = list(islice(self._waiting, self._max_size))
        for _ in batch:
            self._waiting.popleft()
        return batch

    def _compute(self, items: Sequence[Item]) -> Sequence[Result | Exception]:
        try:
            return list(self._function(items))
        except Exception as error:
            return [error] if len(items) == 1 else [self._compute([item])[0] for item in items]
