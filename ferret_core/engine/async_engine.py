"""An engine on a thread of its own, for whoever waits on an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import abc
from contextlib import suppress

from ferret_core.engine.engine import Engine
from ferret_core.engine.prompt import Prompt
from ferret_core.engine.sampling import SamplingParams
from ferret_core.engine.sequence import Delta

logger = logging.getLogger(__name__)

_Told = tuple[asyncio.Queue[Delta | Exception], Delta | Exception]
_FAILURES = 3  # steps, one after the other, after which an engine is taken to be broken


class AsyncEngine:
    """Steps as long as there is something to do; the event loop is told of a step's tokens once, and not of each."""

    def __init__(self, engine: Engine, stepped: abc.Callable[[int], None] = lambda sequences: None) -> None:
        """
        Args:
            engine: to step.
            stepped: is told of every step, and of how many sequences it computed, on the engine's thread.
        """
        self.engine, self._stepped = engine, stepped
        self._told: dict[asyncio.AbstractEventLoop, list[_Told]] = {}
        self._wake, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams,
        answer: abc.Sequence[int] = (),
        deadline: float = float("inf"),
    ) -> abc.AsyncGenerator[Delta]:
        """The answer to one prompt; closing the iterator ends it before the next step.

        Arguments and errors as for `Engine.submit`; `RuntimeError` if the engine is closed.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()

        def receive(delta: Delta | Exception) -> None:
            self._told.setdefault(loop, []).append((queue, delta))

        self.check_health()
        sequence = self.engine.submit(prompt, params, receive, answer, deadline)
        self._wake.set()
        try:
            self.check_health()  # it may have closed, and told all whom it knew
            while True:
                if isinstance(delta := await queue.get(), Exception):
                    raise delta
                yield delta
                if delta.finish_reason:
                    return
        finally:
            self.engine.cancel(sequence)

    def check_health(self) -> None:
        """Raises `RuntimeError` if no answers are to be had here any more."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        if self.engine.failures >= _FAILURES:
            raise RuntimeError(f"the last {self.engine.failures} steps of the engine failed")

    def close(self) -> None:
        """Ends the thread after the step it is in, and all answers with it."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed:
                self._wake.clear()
                sequences = self.engine.step()
                self._deliver()
                if sequences:
                    self._stepped(sequences)
                else:
                    self._wake.wait()
        except Exception:
            logger.exception("the engine stopped")
        finally:
            self._closed = True
            self.engine.abort(RuntimeError("the engine is closed"))
            self._deliver()

    def _deliver(self) -> None:
        told, self._told = self._told, {}
        for loop, deltas in told.items():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_put, deltas)


def _put(deltas: list[_Told]) -> None:
    for queue, delta in deltas:
        queue.put_nowait(delta)
