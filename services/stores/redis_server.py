"""Redis, or Valkey: how it is reached, and what stands between us and it.

The URL says where it is. A password does not travel with the settings: each replica reads it from its environment, from
FERRET_REDIS_PASSWORD or out of FERRET_REDIS_URL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.settings import redis_password
from services.stores.circuit_breaker import CircuitBreaker

if TYPE_CHECKING:
    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

_CONNECT_SECONDS, _READ_SECONDS, _RETRIES = 1, 2, 1  # somebody waits for an answer
_ASYNC_SECONDS = 0.5  # of what is asked before every call


class RedisServer:
    """A server, which all that is kept there reaches through one client and one circuit breaker."""

    def __init__(self, url: str) -> None:
        """As `connect`."""
        self.url, self.client = url, connect(url)
        from redis.exceptions import RedisError

        self.breaker = CircuitBreaker(
            "redis",
            lambda: self.client.set("ferret:probe", b"", ex=60),
            (RedisError, TimeoutError),
            "conversations go on from this machine's copies, nothing computed is shared, and each replica counts calls alone",
        )

    def connect_async(self) -> AsyncRedis:
        """A client for an event loop, of less patience."""
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        return Redis.from_url(
            self.url,
            password=redis_password(),
            socket_connect_timeout=_ASYNC_SECONDS,
            socket_timeout=_ASYNC_SECONDS,
            retry=Retry(NoBackoff(), _RETRIES),  # as below
        )


def connect(url: str) -> Redis:
    """A client of the server at redis://HOST:PORT/NUMBER, rediss:// with TLS, or unix://PATH; threads may share it.

    Raises `RuntimeError` if redis is not installed. No server is asked yet.
    """
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        raise RuntimeError("stores.redis_url needs redis: pip install 'ferret-platform[stores]'") from error
    return Redis.from_url(
        url,
        password=redis_password(),
        socket_connect_timeout=_CONNECT_SECONDS,
        socket_timeout=_READ_SECONDS,
        retry=Retry(NoBackoff(), _RETRIES),  # a connection that idled may have gone: the next is asked
    )
