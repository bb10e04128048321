"""Batches: of whom they are, and that nobody in them suffers for the others."""

import asyncio
import threading

import pytest

from services.batching import Batches


class Doubling:
    """Doubles numbers, a batch at a time; `held` batches wait until they are let go. Negative ones are refused."""

    def __init__(self, max_size=4, held=False):
        self.sizes, self.seen, self.entered, self.go = [], [], threading.Semaphore(0), threading.Semaphore(0)
        self.held = held
        self.batches = Batches(self.double, max_size, self.sizes.append)

    def double(self, items):
        self.seen.append(list(items))
        self.entered.release()
        if self.held:
            assert self.go.acquire(timeout=60)
        if min(items) < 0:
            raise ValueError(f"{min(items)}")
        return [2 * item for item in items]

    async def begun(self):
        """One more batch is being computed."""
        await asyncio.to_thread(self.entered.acquire, timeout=60)

    def ask(self, *items):
        return asyncio.create_task(self.batches.compute(items))


async def settled():
    """What could run, has run."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_batch_is_what_came_while_the_last_one_ran():
    async def check():
        doubling = Doubling(held=True)
        first = doubling.ask(1)
        await doubling.begun()
        others = [doubling.ask(n) for n in range(2, 8)]
        await settled()
        assert doubling.seen == [[1]]
        for _ in range(3):
            doubling.go.release()
        assert [await task for task in (first, *others)] == [[2 * n] for n in range(1, 8)]
        assert doubling.seen == [[1], [2, 3, 4, 5], [6, 7]]
        assert doubling.sizes == [1, 4, 2]

    asyncio.run(check())


def test_who_comes_alone_is_computed_at_once(monkeypatch):
    """The event loop has no timer to wait for, and nobody else comes."""

    async def check():
        doubling, loop = Doubling(), asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_at", lambda *_, **__: pytest.fail("waits for a time"))
        for n in range(3):
            assert await doubling.batches.compute([n]) == [2 * n]
        assert doubling.seen == [[0], [1], [2]]

    asyncio.run(check())


def test_many_items_of_one_caller_are_several_batches():
    async def check():
        doubling = Doubling()
        assert await doubling.batches.compute(range(10)) == [2 * n for n in range(10)]
        assert doubling.sizes == [4, 4, 2]
        assert await doubling.batches.compute([]) == []

    asyncio.run(check())


def test_one_that_fails_does_not_fail_the_others():
    async def check():
        doubling = Doubling()
        good, bad, mixed = doubling.ask(1), doubling.ask(-1), doubling.ask(2, -2)
        results = await asyncio.gather(good, bad, mixed, return_exceptions=True)
        assert results[0] == [2]
        assert [str(error) for error in results[1:]] == ["-1", "-2"]
        assert await doubling.batches.compute([3]) == [6]

    asyncio.run(check())


def test_what_nobody_waits_for_any_more_is_not_computed():
    async def check():
        doubling = Doubling(held=True)
        first = doubling.ask(1)
        await doubling.begun()
        gone, stays = doubling.ask(2), doubling.ask(3)
        await settled()
        first.cancel()  # while it is computed
        gone.cancel()
        doubling.go.release()
        doubling.go.release()
        assert await stays == [6]
        assert doubling.seen == [[1], [3]]
        assert first.cancelled()
        assert gone.cancelled()

    asyncio.run(check())
