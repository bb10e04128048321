"""What need not be computed twice: tensors by the content that they were computed from.

Whatever has a say in a value is part of its key, so that an entry is never wrong; a miss is never an error.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from services.errors import UnavailableError
from services.stores.circuit_breaker import CircuitBreaker

if TYPE_CHECKING:
    from redis import Redis

_PREFIX = "ferret:cache:"
_SCANNED_AT_A_TIME = 1000  # keys; a million of them are looked through in a second, and others are served meanwhile


class Cache(ABC):
    """Bytes by key, until there is no room for them or nobody used them for long."""

    @abstractmethod
    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """A value for each key; None where there is none."""

    @abstractmethod
    def put(self, values: Mapping[str, bytes]) -> None:
        """Keeps values."""

    @abstractmethod
    def forget(self, content: str) -> None:
        """Forgets every value whose key names this content, such as the id of an image."""


class MemoryCache(Cache):
    """In this process; the least recently used values go when together they outgrow `max_bytes`."""

    def __init__(self, max_bytes: int, seconds: float = float("inf")) -> None:
        self.max_bytes, self.seconds = max_bytes, seconds
        self._values: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # each with the time it was last used
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        with self._lock:
            return [self._get(key) for key in keys]

    def put(self, values: Mapping[str, bytes]) -> None:
        with self._lock:
            for key, value in values.items():
                self._remove(key)
                self._values[key] = value, time.monotonic()
                self._bytes += len(value)
            while self._bytes > self.max_bytes:
                self._remove(next(iter(self._values)))

    def forget(self, content: str) -> None:
        self.remove([key for key in list(self._values) if content in key])

    def remove(self, keys: Iterable[str]) -> None:
        """Forgets values."""
        with self._lock:
            for key in keys:
                self._remove(key)

    def _get(self, key: str) -> bytes | None:
        value, used = self._values.get(key, (None, 0.0))
        if value is None or time.monotonic() - used > self.seconds:
            self._remove(key)
            return None
        self._values[key] = value, time.monotonic()
        self._values.move_to_end(key)
        return value

    def _remove(self, key: str) -> None:
        value, _ = self._values.pop(key, (b"", 0.0))
        self._bytes -= len(value)


def local_copies() -> MemoryCache:
    """For what a replica has lately used of a server's, to go on with while that is away."""
    return MemoryCache(64 * 2**20, seconds=3600)


class RedisCache(Cache):
    """In Redis, for all replicas. While it is away, nothing is found and nothing kept."""

    def __init__(self, client: Redis, breaker: CircuitBreaker, seconds: float) -> None:
        self.client, self.breaker, self.milliseconds = client, breaker, max(1, round(1000 * seconds))

    def get(self, keys: Sequence[str]) -> list[bytes | None]:
        with suppress(UnavailableError), self.breaker.call(), self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.getex(_PREFIX + key, px=self.milliseconds)
            return pipe.execute()
        return [None] * len(keys)

    def put(self, values: Mapping[str, bytes]) -> None:
        with suppress(UnavailableError), self.breaker.call(), self.client.pipeline(transaction=False) as pipe:
            for key, value in values.items():
                pipe.set(_PREFIX + key, value, px=self.milliseconds)
            pipe.execute()

    def forget(self, content: str) -> None:
        """By looking through them all: nobody asks often, and no index need be kept in step."""
        with suppress(UnavailableError), self.breaker.call():
            if names := list(self.client.scan_iter(match=f"{_PREFIX}*{content}*", count=_SCANNED_AT_A_TIME)):
                self.client.unlink(*names)
