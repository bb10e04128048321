"""Clients that leave, read or not: whoever writes to them hears of it where it waits for more to write."""

import asyncio

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceServicer, FerretServiceStub, add_FerretServiceServicer_to_server

from services.leaving import ending_with_client

SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1)]
"""Of a client whose system takes nothing that the client does not read."""


class Proxy(FerretServiceServicer):
    """Writes what it waits for, and, as Serve's proxy, notices only there that nobody wants it."""

    def __init__(self):
        self.written, self.told = 0, asyncio.Event()
        self.Chat = ending_with_client(self.messages)

    async def messages(self, request, context):
        while self.written < request.turn:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                self.told.set()
                return
            self.written += 1
            yield pb.ChatResponse(text_delta=pb.TextDelta(text="words " * 1000))


async def serving(check):
    proxy, server = Proxy(), grpc.aio.server()
    add_FerretServiceServicer_to_server(proxy, server)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"localhost:{port}", SMALL_WINDOW) as channel:
        await check(proxy, FerretServiceStub(channel))
    await server.stop(None)


@pytest.mark.parametrize("reads", [0, 1, 50])
def test_a_client_that_leaves_is_missed(reads):
    async def check(proxy, stub):
        call = stub.Chat(pb.ChatRequest(turn=1_000_000))
        for _ in range(reads):
            await call.read()
        while proxy.written <= reads:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # until nothing more can be written
        call.cancel()
        await asyncio.wait_for(proxy.told.wait(), 60)

    asyncio.run(serving(check))


def test_one_that_stays_reads_to_the_end():
    async def check(proxy, stub):
        assert len([message async for message in stub.Chat(pb.ChatRequest(turn=100))]) == 100
        assert not proxy.told.is_set()

    asyncio.run(serving(check))
