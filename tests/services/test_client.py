"""The client, against a server of a few lines."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceServicer, add_FerretServiceServicer_to_server

from ferret_core.answer import TextDelta
from services.client import AsyncFerretClient, FerretClient, ServerError, _errors


class Server(FerretServiceServicer):
    """Falls silent after the first word of an answer; its only model is called as the call was authorised."""

    def __init__(self):
        self.gone, self.away = threading.Event(), 0

    def Chat(self, request, context):  # noqa: N802
        if self.away:
            self.away -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "a replica went away; try again")
        context.add_callback(self.gone.set)
        yield pb.ChatResponse(text_delta=pb.TextDelta(text="Well"))
        if request.question == "Stop":
            context.abort(grpc.StatusCode.CANCELLED, "")
        self.gone.wait()

    def ExportConversation(self, request, context):  # noqa: N802
        context.abort(grpc.StatusCode.CANCELLED, "")

    def DeleteConversation(self, request, context):  # noqa: N802
        context.abort(grpc.StatusCode.UNAVAILABLE, "a server is away; try again")

    def GetImage(self, request, context):  # noqa: N802
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, request.image_id)

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


@pytest.mark.parametrize(
    ("details", "seconds"), [("too often; try again in 12 s", 12), ("Received message larger than max", None)]
)
def test_an_error_says_when_to_try_again(server, details, seconds):
    with FerretClient(server.address) as client, pytest.raises(ServerError, match=details) as caught:
        client.get_image(details)
    assert (caught.value.code, caught.value.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, seconds)


def test_a_platform_that_ends_a_call_asks_to_try_again(server):
    async def ask(call):
        async with AsyncFerretClient(server.address) as client:
            await call(client)

    for call in (lambda client: client.ask("Stop", conversation_id="c"), lambda client: client.export_conversation("c")):
        with FerretClient(server.address) as client, pytest.raises(ServerError, match=r"ended the call; try again$") as caught:
            call(client)
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(ServerError, match=r"ended the call; try again$"):
            asyncio.run(ask(call))


def test_what_can_be_asked_twice_is(server):
    """Of an answer its beginning; a platform that is away for longer than some seconds is an error that says so."""
    server.away = 2
    with FerretClient(server.address) as client:
        stream = client.stream("?", conversation_id="c")
        assert next(stream) == TextDelta("Well")
        stream.close()
        assert server.away == 0
        with pytest.raises(ServerError, match="a server is away"):
            client.delete_conversation("c")
        server.away = 9
        with pytest.raises(ServerError, match="a replica went away"):
            client.ask("?", conversation_id="c")
        assert server.away == 4


def test_the_token_goes_with_every_call(server):
    async def models(**options):
        async with AsyncFerretClient(server.address, **options) as client:
            return await client.models()

    for options, authorization in (({"token": "secret"}, "Bearer secret"), ({}, "")):
        with FerretClient(server.address, **options) as client:
            assert client.models() == [authorization]
        assert asyncio.run(models(**options)) == [authorization]


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ("failed to connect to all addresses; last error: Connection refused", "no platform answers at here:1"),
        ("recvmsg: Connection reset by peer", "the connection to here:1 was lost"),
    ],
)
def test_a_connection_that_breaks_is_not_a_platform_that_is_missing(details, says):
    error = grpc.RpcError()
    error.code, error.details = (lambda: grpc.StatusCode.UNAVAILABLE), (lambda: details)
    with pytest.raises(ServerError, match=says), _errors("here:1"):
        raise error
