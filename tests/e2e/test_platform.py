"""The running platform, as its users meet it: `ferret up` in a process of its own, clients in others."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceStub
from PIL import Image

from ferret_core.answer import Answer, Finish, TextDelta
from ferret_core.data.playground import GESTURES, playground_example
from ferret_core.geometry import Box, Point, Scribble
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import Turn
from services.client import AsyncFerretClient, FerretClient, InvalidRequestError, NotFoundError, ServerError
from services.wire import region_to_proto
from tests.processes import assert_none_left, free_port, processes_of

pytestmark = pytest.mark.platform
FERRET = [sys.executable, "-m", "ferret_core.cli"]


def start(home, *arguments):
    environment = os.environ | {"FERRET_HOME": str(home)}
    port = free_port()
    command = [*FERRET, "up", "--port", str(port), "--http-port", str(free_port()), *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log = []
    for line in process.stderr:
        log.append(line)
        if "ready" in line:
            return process, f"localhost:{port}", environment
    raise AssertionError(f"the platform did not start: {''.join(log)}")


class Running(NamedTuple):
    """A platform that is up."""

    server: str
    environment: dict[str, str]

    def processes(self):
        return processes_of(self.environment["FERRET_HOME"])


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    process, server, environment = start(home)
    assert len(processes_of(home)) > 5
    yield Running(server, environment)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert_none_left(home)


@pytest.fixture
def client(platform):
    with FerretClient(platform.server) as client:
        yield client


@pytest.fixture(scope="module")
def predictor():
    return FerretPredictor.from_pretrained("playground", device="cpu")


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("gesture", GESTURES)
def test_answers_equal_the_predictors(gesture, client, predictor):
    """Byte for byte, event for event, with every kind of region, on scenes no model was trained on."""
    for index in range(3):
        example = playground_example("test", index, 2, gestures=(gesture,), kinds=("name", "relate", "describe"))
        assert client.set_image(example.image) == predictor.set_image(example.image)
        history = []
        for turn in example.record.turns:
            regions = dict(enumerate(example.record.regions))
            events = list(client.stream(turn.question, regions, history))
            assert events == list(predictor.stream(turn.question, regions, history))
            assert isinstance(events[-1], Finish)
            history.append(Turn(turn.question, Answer.collect(events).text))


def test_answers_come_as_they_are_written(client):
    client.set_image(playground_example("test", 0).image)
    events = list(client.stream("Describe the image."))
    assert sum(isinstance(event, TextDelta) for event in events) > 5


def test_sampling_settings_reach_the_model(client, predictor):
    image = playground_example("test", 1).image
    client.set_image(image)
    predictor.set_image(image)
    settings = {"temperature": 1.2, "top_p": 0.9, "seed": 7, "max_new_tokens": 16}
    assert client.ask("Describe the image.", **settings) == predictor.ask("Describe the image.", **settings)


def test_many_at_once_answer_as_one_at_a_time(platform, predictor):
    examples = [playground_example("test", i, 1, kinds=("name",)) for i in range(8)]

    def ask(example):
        with FerretClient(platform.server) as client:
            client.set_image(example.image)
            return client.ask(example.record.turns[0].question, example.record.regions)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, examples))
    for example, answer in zip(examples, answers, strict=True):
        predictor.set_image(example.image)
        assert answer == predictor.ask(example.record.turns[0].question, example.record.regions)


def test_async_client(platform, predictor):
    example = playground_example("test", 4, 1, kinds=("locate",))

    async def ask():
        async with AsyncFerretClient(platform.server) as client:
            assert await client.models() == ["playground"]
            await client.set_image(example.image)
            return await client.ask(example.record.turns[0].question)

    predictor.set_image(example.image)
    assert asyncio.run(ask()) == predictor.ask(example.record.turns[0].question)


def test_images_by_bytes_and_by_id(platform):
    stub = FerretServiceStub(grpc.insecure_channel(platform.server))
    data = png(playground_example("test", 2).image)
    first = list(stub.Chat(pb.ChatRequest(image_bytes=data, question="Describe the image.")))
    image_id = first[-1].finish.image_id
    assert image_id == stub.UploadImage(pb.UploadImageRequest(image_bytes=data)).image.id
    assert stub.GetImage(pb.GetImageRequest(image_id=image_id)).image_bytes == data
    again = list(stub.Chat(pb.ChatRequest(image_id=image_id, question="Describe the image.", model="playground")))
    assert again == first


def test_dropped_history_is_reported(client):
    client.set_image(playground_example("test", 0).image)
    history = [Turn("Describe the image.", "Very long. " * 300) for _ in range(4)]
    answer = client.ask("Describe the image.", history=history)
    assert answer.usage.dropped_turns > 0


def test_bad_requests_name_the_field_and_the_platform_keeps_serving(platform, client):
    stub = FerretServiceStub(grpc.insecure_channel(platform.server))
    image = playground_example("test", 0).image
    data, size, bomb = png(image), image.size, png(Image.new("1", (9000, 9000)))
    point = {0: region_to_proto(Point(5, 5))}
    outside = {0: region_to_proto(Box(0, 0, size[0] + 50, 5))}
    unknown = "sha256:" + "0" * 64
    invalid = [
        (pb.ChatRequest(question="x"), "image: set image_bytes or image_id"),
        (pb.ChatRequest(image_bytes=b"hello", question="x"), "image: not one of JPEG"),
        (pb.ChatRequest(image_bytes=data[: len(data) // 2], question="x"), "image: truncated or damaged"),
        (pb.ChatRequest(image_bytes=bomb, question="x"), "image: 9000 x 9000 pixels; at most 50,000,000"),
        (pb.ChatRequest(image_bytes=data), "question: must not be empty"),
        (pb.ChatRequest(image_bytes=data, question="What is [region7]?", regions=point), "[region7] is not among the regions"),
        (pb.ChatRequest(image_bytes=data, question="What is [region0]?", regions=outside), "regions[0]: box: x2 = "),
        (pb.ChatRequest(image_bytes=data, question="What is [region0]?", regions={0: {}}), "regions[0]: shape"),
        (
            pb.ChatRequest(image_bytes=data, question="[region0]", regions={0: region_to_proto(Scribble((), 3))}),
            "regions[0]: scribble: needs at least 1 point",
        ),
        (pb.ChatRequest(image_bytes=data, question="word " * 3000), "tokens with its image and regions, but the context"),
        (pb.ChatRequest(image_bytes=data, question="x" * 1_000_001), "history: at most 1,000,000 characters"),
        (pb.ChatRequest(image_bytes=data, question="x", history=[pb.Turn()] * 1001), "history: at most 1,000 turns"),
        (pb.ChatRequest(image_bytes=data, question="x </s> y"), "'</s>' is reserved"),
        (pb.ChatRequest(image_bytes=data, question="x", sampling={"max_new_tokens": 0}), "max_new_tokens: must be at least 1"),
        (pb.ChatRequest(image_bytes=data, question="x", sampling={"temperature": -1}), "temperature: must be in"),
        (pb.ChatRequest(image_bytes=data, question="x", regions=dict.fromkeys(range(65), point[0])), "regions: at most 64"),
    ]  # fmt: skip
    missing = [
        (pb.ChatRequest(image_id=unknown, question="x"), "image_id: no image 'sha256:0"),
        (pb.ChatRequest(image_bytes=data, question="x", model="gpt"), "model: no model 'gpt'; there are playground"),
    ]
    for code, cases in ((grpc.StatusCode.INVALID_ARGUMENT, invalid), (grpc.StatusCode.NOT_FOUND, missing)):
        for request, says in cases:
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Chat(request))
            assert caught.value.code() == code, caught.value.details()
            assert says in caught.value.details()
            assert "Traceback" not in caught.value.details()
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetImage(pb.GetImageRequest(image_id="../../etc/passwd"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND

    with pytest.raises(InvalidRequestError, match="not one of JPEG"):
        client.set_image(b"hello")
    with FerretClient(platform.server, model="gpt") as other:
        other.set_image(image)
        with pytest.raises(NotFoundError, match="no model 'gpt'"):
            other.ask("x")
    client.set_image(image)
    assert client.ask("Describe the image.").finish_reason == "stop"


def test_a_client_that_goes_away_does_not_hold_the_decoder(platform, client):
    """Ten abandoned answers of 1500 tokens each would keep it busy for more than a minute."""
    client.set_image(playground_example("test", 0).image)
    settings = {"temperature": 5.0, "max_new_tokens": 1500}
    streams = [client.stream("Describe the image.", seed=seed, **settings) for seed in range(10)]
    for stream in streams:
        next(stream)
        stream.close()
    (decoder,) = [p for p in platform.processes() if "llm-decoder" in p.name() or "llm-decoder" in " ".join(p.cmdline())]

    def seconds_of_work():
        before = sum(decoder.cpu_times()[:2])
        time.sleep(2)
        return sum(decoder.cpu_times()[:2]) - before

    assert any(seconds_of_work() < 0.5 for _ in range(5))


def test_no_server():
    with FerretClient(f"localhost:{free_port()}") as client, pytest.raises(ServerError, match="start one with `ferret up`"):
        client.models()


def test_command_line(platform, tmp_path):
    """`ferret status`, and `ferret ask` with and without a server: the same answer."""
    server, environment = platform
    status = subprocess.run([*FERRET, "status"], env=environment, capture_output=True, text=True, check=True).stdout
    assert f"gRPC on {server}" in status
    assert "models: playground" in status
    for name in ("gateway", "playground-image-encoder", "playground-region-sampler", "playground-llm-decoder"):
        assert f"{name:32} HEALTHY      1 RUNNING" in status

    example = playground_example("test", 5, 1, kinds=("name",), gestures=("box",))
    picture = tmp_path / "scene.png"
    example.image.save(picture)
    box = ",".join(map(str, example.record.regions[0].coordinates(example.record.size)))
    ask = [*FERRET, "ask", str(picture), "What is [region0]?", "--region", f"box:{box}", "--json"]
    local = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    remote = subprocess.run([*ask, "--server", server], capture_output=True, text=True, check=True).stdout
    assert json.loads(remote) == json.loads(local)

    second = subprocess.run([*FERRET, "up"], env=environment, capture_output=True, text=True)
    assert second.returncode == 1
    assert "a platform is already up" in second.stderr


def test_down_leaves_no_process_behind(tmp_path):
    process, _, environment = start(tmp_path)
    subprocess.run([*FERRET, "down"], env=environment, check=True)
    assert process.wait(60) == 0
    assert_none_left(tmp_path)
    assert not list(tmp_path.glob("*.json"))
    again = subprocess.run([*FERRET, "down"], env=environment, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (1, "no platform is up\n")


def test_interrupt_while_starting_leaves_no_process_behind(tmp_path):
    command = [*FERRET, "up", "--port", str(free_port()), "--http-port", str(free_port())]
    with subprocess.Popen(
        command, env=os.environ | {"FERRET_HOME": str(tmp_path)}, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if "loading" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert_none_left(tmp_path)
