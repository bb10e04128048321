"""Limits of a client, counted by one process and by Redis: the same rules."""

import asyncio
import logging
import time
from contextlib import AsyncExitStack, suppress

import pytest

from services.access import limits
from services.access.limits import Limit, LocalLimits, open_limits
from services.errors import LimitError
from services.stores.redis_server import RedisServer
from tests.processes import wait_until
from tests.redis_server import redis_server


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def replica():
    """Opens limits as one more replica does: with the Redis at a URL, or without one."""
    servers = []

    def open_replica(url):
        if url is None:
            return open_limits(None)
        servers.append(RedisServer(url))
        servers[-1].breaker.start()
        return open_limits(servers[-1])

    yield open_replica
    for server in servers:
        server.breaker.close()


@pytest.fixture(params=["local", "redis"])
def url(request):
    return None if request.param == "local" else request.getfixturevalue("redis").url


async def call(counted, limit, client="web"):
    async with counted.hold(client, limit):
        pass


def test_a_burst_is_let_in_and_then_calls_at_the_rate(url, replica, request):
    async def check():
        counted, limit, client = replica(url), Limit(rate=120, burst=5, concurrent=100), request.node.name
        started, calls = time.monotonic(), 0
        while time.monotonic() - started < 2.2:  # two a second
            with suppress(LimitError):
                await call(counted, limit, client)
                calls += 1
            await asyncio.sleep(0.01)
        elapsed = time.monotonic() - started
        assert calls <= 5 + 2 * elapsed
        assert calls >= 5 + int(2 * 2.2) - 1
        with suppress(LimitError):
            await call(counted, limit, client)
        with pytest.raises(LimitError, match="120 calls a minute") as caught:
            await call(counted, limit, client)
        await call(counted, limit, f"{client} another")  # has limits of its own
        await asyncio.sleep(caught.value.retry_after)
        await call(counted, limit, client)

    asyncio.run(check())


def test_places_are_given_back_however_a_call_ends(url, replica, request):
    limit, client = Limit(rate=100_000, burst=100, concurrent=2), request.node.name

    async def check():
        counted = replica(url)
        async with AsyncExitStack() as calls:
            for _ in range(2):
                await calls.enter_async_context(counted.hold(client, limit))
            with pytest.raises(LimitError, match="2 calls at a time"):
                await call(counted, limit, client)

        async def fail():
            async with counted.hold(client, limit):
                raise RuntimeError("decoder")

        async def wait(begun):
            async with counted.hold(client, limit):
                begun.set()
                await asyncio.sleep(60)

        for _ in range(3):
            with pytest.raises(RuntimeError, match="decoder"):
                await fail()
            begun = asyncio.Event()
            cancelled = asyncio.ensure_future(wait(begun))
            await begun.wait()
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        async with counted.hold(client, limit), counted.hold(client, limit):
            pass

    asyncio.run(check())


def test_a_refused_call_costs_nothing(url, replica, request):
    """Or whoever keeps asking would never be let in."""
    limit, client = Limit(rate=60, burst=2, concurrent=1), request.node.name

    async def check():
        counted = replica(url)
        async with counted.hold(client, limit):
            for _ in range(50):
                with pytest.raises(LimitError, match="at a time"):
                    await call(counted, limit, client)
        await call(counted, limit, client)
        waits = []
        for _ in range(20):
            with pytest.raises(LimitError, match="a minute") as caught:
                await call(counted, limit, client)
            waits.append(caught.value.retry_after)
        assert waits == sorted(waits, reverse=True)
        assert waits[0] <= 1

    asyncio.run(check())


def test_the_wait_is_exact():
    now = 1000.0
    counted, limit = LocalLimits(lambda: now), Limit(rate=30, burst=3, concurrent=9)

    async def check():
        nonlocal now
        for _ in range(3):
            await call(counted, limit)
        with pytest.raises(LimitError) as caught:
            await call(counted, limit)
        assert caught.value.retry_after == pytest.approx(2)
        now += 2
        await call(counted, limit)
        now += 3600  # a long rest is worth a burst, and no more
        for _ in range(3):
            await call(counted, limit)
        with pytest.raises(LimitError):
            await call(counted, limit)

    asyncio.run(check())


def test_replicas_that_share_a_redis_count_together(redis, replica):
    limit = Limit(rate=60, burst=10, concurrent=3)

    async def check():
        replicas = [replica(redis.url) for _ in range(2)]
        async with replicas[0].hold("shared", limit), replicas[1].hold("shared", limit), replicas[0].hold("shared", limit):
            for counted in replicas:
                with pytest.raises(LimitError, match="3 calls at a time"):
                    await call(counted, limit, "shared")
        for i in range(7):
            await call(replicas[i % 2], limit, "shared")
        for counted in replicas:
            with pytest.raises(LimitError, match="60 calls a minute"):
                await call(counted, limit, "shared")

    asyncio.run(check())


def test_places_of_a_replica_that_died_come_back(redis, replica, monkeypatch):
    monkeypatch.setattr(limits, "_LEASE_SECONDS", 0.5)
    limit = Limit(rate=100_000, burst=100, concurrent=1)

    async def check():
        held = replica(redis.url).hold("dead", limit)
        await held.__aenter__()  # and nobody lets go
        counted = replica(redis.url)
        with pytest.raises(LimitError):
            await call(counted, limit, "dead")
        await asyncio.sleep(0.6)
        await call(counted, limit, "dead")
        await held.__aexit__(None, None, None)

    asyncio.run(check())


def test_without_redis_each_replica_counts_for_itself_until_it_is_back(tmp_path, replica, caplog):
    """Also when it goes in the middle of a call. It is said once, and costs a call no time."""
    caplog.set_level(logging.INFO, "ray.serve")
    limit = Limit(rate=60, burst=3, concurrent=2)

    async def check():
        with redis_server(tmp_path) as server:
            one, other = replica(server.url), replica(server.url)
            async with one.hold("web", limit):
                server.stop()
            for counted in (one, other):
                started = time.monotonic()
                for _ in range(3):
                    await call(counted, limit)
                assert time.monotonic() - started < 1
                with pytest.raises(LimitError):
                    await call(counted, limit)
            losses = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert len(losses) == 2
            assert all(loss.startswith("redis is away (") and "each replica counts calls alone" in loss for loss in losses)
            server.start()
            await asyncio.to_thread(wait_until, lambda: caplog.text.count("redis is back") == 2)
            for counted in (one, other):
                await call(counted, limit, "after")
            with pytest.raises(LimitError):
                async with one.hold("together", limit), other.hold("together", limit):
                    await call(one, limit, "together")

    asyncio.run(check())


def test_a_place_that_redis_counted_too_late_is_given_back(redis, replica):
    async def check():
        counted = replica(redis.url)
        take = counted._take

        async def late(**arguments):
            await take(**arguments)
            raise TimeoutError

        counted._take = late
        async with counted.hold("late", Limit()):
            assert await counted._redis.zcard("ferret:limits:{late}:held") == 1
        assert await counted._redis.zcard("ferret:limits:{late}:held") == 0

    asyncio.run(check())


def test_a_redis_that_does_not_answer_is_not_waited_for(replica):
    """It takes connections, and says nothing."""

    async def check():
        server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
        async with server:
            counted = replica(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            started = time.monotonic()
            for _ in range(10):
                await call(counted, Limit())
            assert time.monotonic() - started < 3
            server.close()

    asyncio.run(asyncio.wait_for(check(), 30))
