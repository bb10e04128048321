"""The client, against a server of a few lines."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceServicer, add_FerretServiceServicer_to_server

from ferret_core.answer import TextDelta
from services.client import AsyncFerretClient, FerretClient


class Server(FerretServiceServicer):
    """Falls silent after the first word of an answer; its only model is called as the call was authorised."""

    def __init__(self):
        self.gone = threading.Event()

    def Chat(self, request, context):  # noqa: N802
        context.add_callback(self.gone.set)
        yield pb.ChatResponse(text_delta=pb.TextDelta(text="Well"))
        self.gone.wait()

    def ListModels(self, request, context):  # noqa: N802
        return pb.ListModelsResponse(models=[pb.Model(name=dict(context.invocation_metadata()).get("authorization", ""))])


@pytest.fixture
def server():
    servicer, server = Server(), grpc.server(ThreadPoolExecutor(4))
    add_FerretServiceServicer_to_server(servicer, server)
    servicer.address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    yield servicer
    servicer.gone.set()
    server.stop(None).wait()


def test_a_stream_can_be_closed_while_another_thread_waits_for_it(server):
    events, first = [], threading.Event()

    def read(stream):
        for event in stream:
            events.append(event)
            first.set()
        events.append("end")

    with FerretClient(server.address) as client:
        stream = client.stream("?", conversation_id="c")
        reader = threading.Thread(target=read, args=[stream])
        reader.start()
        assert first.wait(60)
        stream.close()
        reader.join(60)
        assert events == [TextDelta("Well"), "end"]
        assert list(stream) == []
        assert server.gone.wait(60)


def test_letting_go_of_a_stream_cancels_it(server):
    with FerretClient(server.address) as client:
        for _ in client.stream("?", conversation_id="c"):
            break
        assert server.gone.wait(60)


def test_the_token_goes_with_every_call(server):
    async def models(**options):
        async with AsyncFerretClient(server.address, **options) as client:
            return await client.models()

    for options, authorization in (({"token": "secret"}, "Bearer secret"), ({}, "")):
        with FerretClient(server.address, **options) as client:
            assert client.models() == [authorization]
        assert asyncio.run(models(**options)) == [authorization]
