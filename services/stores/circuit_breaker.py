"""What stands between us and a server that may go away."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from services.errors import UnavailableError
from services.metrics import STORE_LOSSES, STORE_UP

logger = logging.getLogger("ray.serve")

_PERIOD_SECONDS = 5.0  # between two looks at a server
_FIRST_PAUSE_SECONDS = 0.25  # before one that was lost is looked for; doubled up to the period
_QUIET_SECONDS = 60.0  # in which a server that comes and goes is not complained about again


class CircuitBreaker:
    """Calls to a server fail at once while it is away: one that waits for a timeout is enough.

    A thread of its own looks for the server all the time; once it is back, what waited for it is written (`write_backs`), and
    then calls go through again. A loss is one warning in the log, and shows in `ferret_store_up` and
    `ferret_store_losses_total`.
    """

    def __init__(self, server: str, probe: Callable[[], None], failures: tuple[type[Exception], ...], meanwhile: str) -> None:
        """
        Args:
            server: its name, in the log and as a tag of the metrics.
            probe: raises one of `failures` if the server is away. Must change something there, or at least ask for something.
            failures: the exceptions of a server that is away.
            meanwhile: what happens while it is, for the log.
        """
        self.server, self.up = server, True
        self.write_backs: list[Callable[[], None]] = []
        self._probe, self._failures, self._meanwhile = probe, failures, meanwhile
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._lost = self._warned = float("-inf")
        self._told = self._closed = False

    def start(self) -> None:
        """Starts to look for the server; `write_backs` are complete by now."""
        threading.Thread(target=self._watch, name=f"{self.server}-watch", daemon=True).start()

    def close(self) -> None:
        """Stops looking."""
        self._closed = True
        self._wake.set()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Around calls to the server. Raises `UnavailableError` instead of its failures, and without a call if it is away."""
        if not self.up:
            raise self._unavailable()
        try:
            yield
        except self._failures as error:
            self._open(error)
            raise self._unavailable() from error

    def _unavailable(self) -> UnavailableError:
        return UnavailableError("what the platform keeps cannot be reached at the moment; try again in a minute")

    def _watch(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._closed:
            try:
                self._probe()
                for write_back in self.write_backs:
                    write_back()
            except self._failures as error:
                self._open(error)
            except Exception as error:
                where = "".join(traceback.format_tb(error.__traceback__))
                message = "%s is there, but something that waited for it cannot be written back (%s)\n%s"
                logger.error(message, self.server, _kind(error), where)
                self._close()
            else:
                self._close()
            settled = self.up and time.monotonic() - self._lost > 4 * _PERIOD_SECONDS
            if self._wake.wait(_PERIOD_SECONDS if settled else pause):
                self._wake.clear()
                time.sleep(pause)
            pause = _FIRST_PAUSE_SECONDS if settled else min(2 * pause, _PERIOD_SECONDS)

    def _open(self, error: Exception) -> None:
        with self._lock:
            now = time.monotonic()
            STORE_UP.set(0, tags={"server": self.server})
            if self.up:
                self.up, self._told, self._lost = False, False, now
                STORE_LOSSES.inc(1, tags={"server": self.server})
                self._wake.set()
            if not self._told and now - self._warned > _QUIET_SECONDS:
                self._told, self._warned = True, now
                logger.warning("%s is away (%s); until it is back, %s", self.server, _kind(error), self._meanwhile)

    def _close(self) -> None:
        with self._lock:
            STORE_UP.set(1, tags={"server": self.server})
            if not self.up:
                self.up = True
                logger.info("%s is back after %.0f s", self.server, time.monotonic() - self._lost)


def _kind(error: BaseException) -> str:
    """What is at the root of an error, without its text: that may name a conversation, and who knows its id may read it."""
    while error.__cause__:
        error = error.__cause__
    return getattr(error, "code", None) or type(error).__name__  # S3 has a code for what it refuses
