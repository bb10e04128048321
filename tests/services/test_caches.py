"""What need not be computed twice."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.settings import StoreSettings
from services.stores import open_stores
from services.stores.caches import MemoryCache
from tests.processes import wait_until


@pytest.fixture
def shared(redis, tmp_path):
    """The cache of a replica, for as many as one wants."""
    opened = []

    def open_cache(**settings):
        opened.append(open_stores(StoreSettings(directory=tmp_path, redis_url=redis.url, **settings)))
        return opened[-1].cache

    yield open_cache
    for stores in opened:
        stores.close()


def test_the_least_recently_used_go():
    cache = MemoryCache(max_bytes=250)
    cache.put({"a": bytes(100), "b": bytes(100)})
    assert cache.get(["a", "c"]) == [bytes(100), None]
    cache.put({"c": bytes(100)})
    assert cache.get(["a", "b", "c"]) == [bytes(100), None, bytes(100)]
    cache.put({"a": bytes(50)})  # takes the place of the first
    cache.put({"d": bytes(100)})
    assert [value and len(value) for value in cache.get(["a", "c", "d"])] == [50, 100, 100]
    cache.put({"huge": bytes(251)})
    assert cache.get(["a", "c", "d", "huge"]) == [None] * 4
    cache.put({"e": bytes(250)})
    assert cache.get(["e"]) == [bytes(250)]
    cache.remove(["e", "f"])
    assert cache.get(["e"]) == [None]


def test_the_unused_go_from_memory():
    cache = MemoryCache(max_bytes=250, seconds=0.2)
    cache.put({"a": b"x", "b": b"y"})
    for _ in range(4):
        time.sleep(0.1)
        assert cache.get(["a"]) == [b"x"]
    assert cache.get(["b"]) == [None]


def test_memory_holds_no_more_than_it_may():
    cache = MemoryCache(max_bytes=1000)

    def use(turn):
        cache.put({str(turn % 30): bytes(turn % 90)})
        cache.get([str(turn % 7)])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(2000)))
    kept = sum(len(value or b"") for value in cache.get([str(i) for i in range(30)]))
    assert 500 < kept == cache._bytes <= 1000


def test_replicas_share_what_is_in_redis(redis, shared):
    first, second = shared(), shared()
    first.put({"a": b"x", "b": b"y"})
    assert second.get(["b", "c", "a"]) == [b"y", None, b"x"]
    second.forget("a")
    assert first.get(["a", "b"]) == [None, b"y"]


def test_all_that_names_a_content_is_forgotten(shared):
    for cache in (MemoryCache(10_000), shared()):
        cache.put({f"region:r:{image}:{i}": b"x" for image in ("sha256:1", "sha256:2") for i in range(1000)})
        cache.forget("sha256:1")
        for image, left in (("sha256:1", None), ("sha256:2", b"x")):
            assert cache.get([f"region:r:{image}:{i}" for i in range(1000)]) == [left] * 1000
        cache.forget("sha256:3")


def test_the_unused_go_from_redis(shared):
    cache = shared(cache_seconds=0.6)
    cache.put({"a": b"x", "b": b"y"})
    for _ in range(4):
        time.sleep(0.3)
        assert cache.get(["a"]) == [b"x"]
    assert cache.get(["b"]) == [None]


def test_without_redis_everything_is_a_miss(redis, shared):
    cache = shared()
    cache.put({"a": b"x"})
    redis.stop()
    assert cache.get(["a", "b"]) == [None, None]
    begun = time.monotonic()
    for i in range(100):
        assert cache.get(["a"]) == [None]
        cache.put({"a": b"%d" % i})
        cache.forget("b")
    assert time.monotonic() - begun < 1
    redis.start()
    wait_until(lambda: cache.get(["a"]) == [b"x"])


def test_a_redis_that_hangs_costs_one_call_its_timeout(redis, shared):
    cache = shared()
    cache.put({"a": b"x"})
    redis._process.send_signal(signal.SIGSTOP)
    try:
        begun = time.monotonic()
        assert cache.get(["a"]) == [None]
        assert time.monotonic() - begun < 5
        begun = time.monotonic()
        for _ in range(100):
            assert cache.get(["a"]) == [None]
        assert time.monotonic() - begun < 1
    finally:
        redis._process.send_signal(signal.SIGCONT)
    wait_until(lambda: cache.get(["a"]) == [b"x"])
