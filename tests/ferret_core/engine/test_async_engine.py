"""An engine beside an event loop."""

import asyncio
import time
from contextlib import aclosing

import pytest

from ferret_core.engine import AsyncEngine, Engine, EngineSettings, Prompt, SamplingParams
from tests.ferret_core.engine.letters import Letters
from tests.processes import wait_until


@pytest.fixture
def decoder(tiny_model):
    """Of answers that take long enough to be disturbed."""
    steps: list[int] = []
    decoder = AsyncEngine(Engine.for_model(tiny_model, Letters(), EngineSettings()), steps.append)
    decoder.steps = steps
    yield decoder
    decoder.close()


def params(most):
    """Of an answer that has all its tokens, almost surely."""
    return SamplingParams(max_new_tokens=most, temperature=1, seed=most)


async def ask(decoder, token, most):
    return [delta.token_id async for delta in decoder.stream(Prompt((token,)), params(most))]


def test_many_at_once_are_answered_as_one_alone(decoder):
    async def together():
        return await asyncio.gather(*(ask(decoder, token, 30) for token in range(3, 19)))

    alone = [asyncio.run(ask(decoder, token, 30)) for token in range(3, 19)]
    decoder.steps.clear()
    assert asyncio.run(together()) == alone
    assert max(decoder.steps) > 8


def test_it_rests_and_wakes(decoder, monkeypatch):
    calls, step = [], decoder.engine.step

    def counted():
        calls.append(1)
        return step()

    monkeypatch.setattr(decoder.engine, "step", counted)
    for most in (3, 4):
        assert len(asyncio.run(ask(decoder, 5, most))) == most
        time.sleep(0.2)
    assert len(calls) <= 3 + 4 + 4  # and some with which it found nothing to do


def test_who_leaves_ends_an_answer(decoder):
    async def leave():
        async with aclosing(decoder.stream(Prompt((5,)), params(900))) as deltas:
            async for _ in deltas:
                break

    asyncio.run(leave())
    wait_until(lambda: not decoder.engine.tokens_in_use)
    assert len(decoder.steps) < 900
    assert asyncio.run(ask(decoder, 5, 3))  # others go on, on a loop of their own


def failing(chunks):
    raise RuntimeError("out of order")


def test_steps_that_fail_are_told_and_in_the_end_it_is_unwell(decoder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(decoder.engine.runner, "run", failing)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="out of order"):
                asyncio.run(ask(decoder, 5, 3))
        decoder.check_health()
        with pytest.raises(RuntimeError, match="out of order"):
            asyncio.run(ask(decoder, 5, 3))
        with pytest.raises(RuntimeError, match="the last 3 steps of the engine failed"):
            decoder.check_health()


@pytest.mark.parametrize("how", ["closed", "broken"])
def test_no_answer_waits_for_ever(decoder, monkeypatch, how):
    """Neither those that are open when the thread ends nor those that come later."""

    async def interrupted():
        async with aclosing(decoder.stream(Prompt((5,)), params(900))) as deltas:
            await anext(deltas)
            if how == "closed":
                await asyncio.to_thread(decoder.close)
            else:
                monkeypatch.setattr(decoder.engine.scheduler, "next_step", lambda: failing(()))
            async for _ in deltas:
                pass

    with pytest.raises(RuntimeError, match="the engine is closed"):
        asyncio.run(interrupted())
    with pytest.raises(RuntimeError, match="the engine is closed"):
        asyncio.run(ask(decoder, 5, 3))
