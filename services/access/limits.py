"""How much a client may ask: calls a minute, and calls at a time. Of one replica, or of all that share a Redis."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from pydantic import Field

from services.errors import LimitError, UnavailableError
from services.settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from services.stores.circuit_breaker import CircuitBreaker
    from services.stores.redis_server import RedisServer

_BUSY_SECONDS = 1.0  # when to ask again, where nobody knows when a call ends
_LEASE_SECONDS = 300.0
_PATIENCE_SECONDS = 1.0


class Limit(Settings):
    """Of one client."""

    rate: float = Field(60, gt=0, le=1_000_000)
    """Calls a minute, in the long run."""
    burst: int = Field(20, ge=1)
    """Calls at once, after a rest."""
    concurrent: int = Field(8, ge=1)
    """Calls at a time, answers that are being written among them."""


class Limits(Protocol):
    """Counts calls by client."""

    def hold(self, client: str, limit: Limit) -> AbstractAsyncContextManager[None]:
        """A call's place until the end of the block. Raises `LimitError` if there is none for it now."""


class LocalLimits:
    """Counts the calls of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}  # when a client that never hurries would ask next
        self._held: Counter[str] = Counter()

    @asynccontextmanager
    async def hold(self, client: str, limit: Limit) -> AsyncIterator[None]:
        """As `Limits.hold`."""
        if self._held[client] >= limit.concurrent:
            raise _too_many_at_a_time(limit)
        now, interval = self._clock(), 60 / limit.rate
        due = max(self._due.get(client, now), now)
        wait = due - now - interval * (limit.burst - 1)
        if wait > 1e-6:  # less is rounding
            raise _too_many_a_minute(limit, wait)
        self._due[client] = due + interval
        self._held[client] += 1
        try:
            yield
        finally:
            self._held[client] -= 1


class RedisLimits:
    """Counts the calls of all processes that share a Redis; those of its own as long as Redis cannot be asked.

    A call counts for at most five minutes, so that those of a replica that died do not count for ever.
    """

    # What LocalLimits does, in one step and by Redis's clock, in microseconds. Returns the call's wait, or -1 for too many at
    # a time.
    _TAKE = """
        local time = redis.call('TIME')
        local now = time[1] * 1000000 + time[2]
        local interval, burst, concurrent, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
        redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
        if redis.call('ZCARD', KEYS[2]) >= concurrent then return -1 end
        local due = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
        local wait = due - now - interval * (burst - 1)
        if wait > 1 then return math.ceil(wait) end
        due = due + interval
        redis.call('SET', KEYS[1], string.format('%.0f', due), 'PX', math.ceil((due - now) / 1000))
        redis.call('ZADD', KEYS[2], now + lease, ARGV[5])
        redis.call('PEXPIRE', KEYS[2], math.ceil(lease / 1000))
        return 0
    """

    def __init__(self, redis: Redis, breaker: CircuitBreaker) -> None:
        self._redis, self._take, self._breaker = redis, redis.register_script(self._TAKE), breaker
        self._local = LocalLimits()

    @asynccontextmanager
    async def hold(self, client: str, limit: Limit) -> AsyncIterator[None]:
        """As `Limits.hold`."""
        due, held, call = f"ferret:limits:{{{client}}}:due", f"ferret:limits:{{{client}}}:held", secrets.token_hex(8)
        asked = self._breaker.up
        try:
            wait = await self._wait(due, held, call, limit)
        except asyncio.CancelledError:  # Redis may have counted it
            await asyncio.shield(self._give_back(held, call))
            raise
        if wait is None:
            try:
                async with self._local.hold(client, limit):
                    yield
            finally:
                if asked:  # Redis may have counted it, and answered too late
                    await asyncio.shield(self._give_back(held, call))
            return
        if wait < 0:
            raise _too_many_at_a_time(limit)
        if wait > 0:
            raise _too_many_a_minute(limit, wait / 1e6)
        try:
            yield
        finally:
            await asyncio.shield(self._give_back(held, call))

    async def _wait(self, due: str, held: str, call: str, limit: Limit) -> int | None:
        """What Redis says; None if it cannot be asked."""
        arguments: list[str | int | float] = [60e6 / limit.rate, limit.burst, limit.concurrent, _LEASE_SECONDS * 1e6, call]
        with suppress(UnavailableError), self._breaker.call():
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return int(await self._take(keys=[due, held], args=arguments))
        return None

    async def _give_back(self, held: str, call: str) -> None:
        with suppress(Exception):  # or else the lease ends it
            await self._redis.zrem(held, call)


def open_limits(redis: RedisServer | None) -> Limits:
    """Limits over all replicas that share a Redis, or of this one alone."""
    return RedisLimits(redis.connect_async(), redis.breaker) if redis else LocalLimits()


def _too_many_at_a_time(limit: Limit) -> LimitError:
    return LimitError(f"this token allows {limit.concurrent} calls at a time", _BUSY_SECONDS)


def _too_many_a_minute(limit: Limit, wait: float) -> LimitError:
    return LimitError(f"this token allows {limit.rate:g} calls a minute", wait)
