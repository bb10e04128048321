"""People who ask all the time, whatever happens to the platform meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

from tests.processes import wait_until


class Asking:
    """Each of `asks` is called over and over, in a thread of its own, until the end of the block."""

    def __init__(self, *asks: Callable[[], Any]) -> None:
        self.answers: list[Any] = []
        self.failures: list[Exception] = []
        self.slowest = 0.0
        self._stopped = False
        self._threads = [threading.Thread(target=self._repeat, args=[ask]) for ask in asks]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for thread in self._threads:
            thread.join()

    def __str__(self) -> str:
        return f"{len(self.answers)} answers, the slowest within {self.slowest:.1f} s; {len(self.failures)} failures"

    def _repeat(self, ask: Callable[[], Any]) -> None:
        while not self._stopped:
            begun = time.monotonic()
            try:
                self.answers.append(ask())
            except Exception as error:
                self.failures.append(error)
                time.sleep(0.1)
            self.slowest = max(self.slowest, time.monotonic() - begun)

    def some_more(self, count: int = 4) -> None:
        """Waits for so many more answers."""
        wanted = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= wanted, 120)
