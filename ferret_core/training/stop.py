"""Stopping a run so that it can go on."""

from __future__ import annotations

import signal

EXIT_STOPPED = 143
"""Exit code of a run that was stopped and saved, as of a process that SIGTERM ended."""


class Stopped(Exception):  # noqa: N818 (it is no error)
    """The run was asked to stop, and has saved what it needs to go on."""


class StopSignal:
    """Notes SIGTERM and SIGINT while it is open, so that the loop can save before it ends."""

    received = False

    def __enter__(self) -> StopSignal:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, *_: object) -> None:
        self.received = True

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.received
