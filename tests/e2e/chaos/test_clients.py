"""Clients that read slowly, or not at all, or go away: they hold up nobody, and leave nothing behind."""

import time
from itertools import cycle

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceStub

from ferret_core.data.playground import playground_example
from ferret_core.images import image_bytes
from services.client import FerretClient
from tests.e2e.chaos.conftest import LASTING, LONG, MORE_MEMORY
from tests.processes import Running, wait_until

pytestmark = pytest.mark.platform

QUESTION = "Describe the image."
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1), ("grpc.use_local_subchannel_pool", 1)]
"""Of a client whose system takes nothing that the client does not read."""


def running(platform: Running) -> float:
    """Answers that are being written, as Serve counts them at the decoders."""
    return platform.metric("serve_replica_processing_queries", deployment="playground-llm-decoder")


def nothing_runs(platform: Running) -> bool:
    return running(platform) == 0 == platform.metric("ferret_tokens_in_use")


def ended_early(platform: Running) -> float:
    """Answers that ended because nobody wanted them any more."""
    return platform.metric("ferret_calls_total", method="Chat", code="CANCELLED")


def test_fifty_that_disconnect_in_mid_answer(platform):
    before, (proxy,) = ended_early(platform), platform.processes("ProxyActor")
    clients = [FerretClient(platform.server) for _ in range(50)]
    streams = []
    for seed, client in zip(cycle(LASTING), clients, strict=False):
        client.set_image(playground_example("test", 0).image)
        streams.append(client.stream(QUESTION, seed=seed, **LONG))
    for stream in streams:
        next(stream)
    wait_until(lambda: running(platform) > 40, 60)
    for stream in streams[::2]:
        stream.close()
    for client in clients:
        client.close()
    wait_until(lambda: nothing_runs(platform), 60, 0.5)
    wait_until(lambda: ended_early(platform) - before > 40)
    assert platform.decoder_rests()
    assert platform.processes("ProxyActor") == [proxy]


@pytest.mark.flaky(reruns=1)  # memory is
def test_slow_readers_hold_up_nobody(platform, client):
    image, expected, before = image_bytes(playground_example("test", 0).image), client.ask(QUESTION), ended_early(platform)
    processes = platform.processes("ServeReplica") + platform.processes("ProxyActor")
    sizes = [process.memory_info().rss for process in processes]

    with grpc.insecure_channel(platform.server, SMALL_WINDOW) as channel:

        def ask(**sampling):
            request = pb.ChatRequest(image_bytes=image, question=QUESTION, sampling=sampling)
            return FerretServiceStub(channel).Chat(request)

        silent = [ask(seed=seed, **LONG) for seed in LASTING]
        wait_until(lambda: running(platform) == len(silent), 60)
        for call in silent[::2]:
            call.cancel()
        wait_until(lambda: ended_early(platform) - before == len(silent[::2]))
        slow = ask(max_new_tokens=100)
        pieces = []
        for _ in range(4):
            pieces.append(next(slow))
            time.sleep(1)
            assert client.ask(QUESTION) == expected
        pieces += slow
        assert "".join(piece.text_delta.text for piece in pieces) == expected.text
    wait_until(lambda: nothing_runs(platform), 60, 0.5)
    assert platform.decoder_rests()
    grown = [(process.memory_info().rss - size) / 2**20 for process, size in zip(processes, sizes, strict=True)]
    print({process.name(): f"{size:+.1f} MiB" for process, size in zip(processes, grown, strict=True)})
    assert max(grown) < MORE_MEMORY
