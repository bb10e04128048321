"""Far more questions than there are places. What is accepted is answered in its turn; what is not is told when to come back."""

import asyncio
from dataclasses import replace

import grpc
import pytest
from overload import growth, overload, served_meanwhile

from ferret_core.data.playground import playground_example
from services.client import AsyncFerretClient, ServerError
from services.load_generator import Load
from services.load_report import summarize, table
from services.settings import RETRY_SECONDS
from tests.e2e.chaos.conftest import DECODERS, MORE_MEMORY, QUEUE, STREAMS

pytestmark = pytest.mark.platform

PLACES = DECODERS * STREAMS + QUEUE
LOAD = Load(users=2 * PLACES, seconds=30, warmup=0, max_new_tokens=8)
OVERTAKEN = 3 * PLACES
"""Others who may get their first words while a question waits for its own."""


async def refusal(server):
    """What one more is told, at the latest when nobody else begins to ask any more."""
    async with AsyncFerretClient(server) as client, asyncio.timeout(LOAD.seconds):
        await client.set_image(playground_example("test", 0).image)
        while True:
            try:
                await client.ask("Describe the image.", max_new_tokens=1)
            except ServerError as error:
                return error


@pytest.mark.flaky(reruns=1)  # memory is
def test_a_full_queue(platform):
    replicas = {f"decoder {i}": process for i, process in enumerate(platform.processes("-llm-decoder"))}
    for name, title in (("gateway", ":gateway"), ("proxy", "ProxyActor")):
        (replicas[name],) = platform.processes(title)

    asyncio.run(overload(platform.server, {}, replace(LOAD, seconds=10)))  # now pictures are computed, decoders have been full

    async def load_and_one_more():
        return await asyncio.gather(overload(platform.server, replicas, LOAD), refusal(platform.server))

    (outcomes, memory), refused = asyncio.run(load_and_one_more())
    print(table(summarize(LOAD, outcomes)), growth(memory))
    assert (refused.code, refused.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, RETRY_SECONDS)
    errors = {outcome.error for outcome in outcomes}
    assert errors == {"", "RESOURCE_EXHAUSTED"}
    served = served_meanwhile(outcomes)
    assert len(served) > 2 * OVERTAKEN  # or nobody could have been overtaken so often
    assert max(served) <= OVERTAKEN
    assert max(growth(memory).values()) < MORE_MEMORY
