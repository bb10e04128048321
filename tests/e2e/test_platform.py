"""The running platform, as its users meet it: `ferret up` in a process of its own, clients in others."""

import asyncio
import io
import json
import os
import signal
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import torch
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceStub
from PIL import Image

from ferret_core.answer import Answer, Finish, TextDelta
from ferret_core.data.playground import GESTURES, playground_example
from ferret_core.geometry import Box, Point, Scribble
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import Turn
from services.client import AsyncFerretClient, FerretClient, InvalidRequestError, NotFoundError, ServerError
from services.conversation import ConversationTurn
from services.wire import region_to_proto
from tests.processes import FERRET, assert_none_left, free_port, start_platform, wait_until

pytestmark = pytest.mark.platform


@pytest.fixture(scope="module")
def predictor():
    return FerretPredictor.from_pretrained("playground", device="cpu", dtype=torch.float32)


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
    question, data = example.record.turns[0].question, png(example.image)

    async def ask():
        async with AsyncFerretClient(platform.server) as client:
            assert await client.models() == ["playground"]
            await client.set_image(data)
            conversation = await client.create_conversation()
            assert await client.get_image(conversation.image_id) == data
            answers = await client.ask(question), await client.ask(question, conversation_id=conversation.id)
            await client.rate_answer(conversation.id, 0, "up")
            (turn,) = (await client.get_conversation(conversation.id)).turns
            assert (turn.answer, turn.rating) == (answers[0].text, "up")
            archive = zipfile.ZipFile(io.BytesIO(await client.export_conversation(conversation.id)))
            assert archive.namelist() == ["conversation.json", "image.png", "ratings.jsonl"]
            assert archive.read("image.png") == data
            await client.delete_conversation(conversation.id)
            with pytest.raises(NotFoundError, match="no conversation"):
                await client.get_conversation(conversation.id)
            return answers

    predictor.set_image(example.image)
    assert asyncio.run(ask()) == (predictor.ask(question),) * 2


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


def turn_of(question, answer):
    return ConversationTurn(question, answer.text, answer.spans, answer.finish_reason, "playground")


def test_a_conversation_answers_as_its_history_does(client, predictor):
    """Told once what it is about: the image when it is created, the regions and each question when they come."""
    example = playground_example("test", 3, 2, gestures=("scribble",), kinds=("name", "relate", "describe"))
    first, second = (turn.question for turn in example.record.turns)
    regions = dict(enumerate(example.record.regions))
    assert regions
    size = predictor.set_image(example.image)
    conversation = client.create_conversation(example.image)
    assert (conversation.size, conversation.regions, conversation.turns) == (size, {}, ())

    answer = client.ask(first, regions, conversation_id=conversation.id)
    assert answer == predictor.ask(first, regions)
    history = [Turn(first, answer.text)]
    events = list(client.stream(second, conversation_id=conversation.id))
    assert events == list(predictor.stream(second, regions, history))
    kept = client.get_conversation(conversation.id)
    assert kept.regions == regions
    assert kept.turns == (turn_of(first, answer), turn_of(second, Answer.collect(events)))

    other = Point(size.width / 2, size.height / 2)  # takes the place of a region, and an edited question that of both turns
    moved = regions | {0: other}
    answer = client.ask("What is [region0]?", {0: other}, conversation_id=conversation.id, turn=0)
    assert answer == predictor.ask("What is [region0]?", moved)
    kept = client.get_conversation(conversation.id)
    assert (kept.regions, kept.turns) == (moved, (turn_of("What is [region0]?", answer),))

    fork = client.create_conversation(example.image, kept.regions, kept.turns)
    assert fork.id != kept.id
    assert (fork.image_id, fork.regions) == (kept.image_id, kept.regions)
    assert [(turn.question, turn.answer, turn.spans) for turn in fork.turns] == [
        (turn.question, turn.answer, turn.spans) for turn in kept.turns
    ]
    assert client.ask(second, conversation_id=fork.id) == predictor.ask(second, moved, kept.turns)
    assert client.get_conversation(kept.id) == kept


def test_a_stopped_answer_is_kept_as_far_as_it_came(client, predictor):
    image = playground_example("test", 0).image
    conversation = client.create_conversation(image)
    stream = client.stream("Describe the image.", conversation_id=conversation.id, temperature=5.0, max_new_tokens=1500)
    events, begun = [], threading.Event()

    def read():
        for event in stream:
            events.append(event)
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    stream.close()
    reader.join(60)
    assert not reader.is_alive()
    seen = "".join(event.text for event in events if isinstance(event, TextDelta))

    # the client need not wait until the platform has put it down
    wait_until(lambda: client.get_conversation(conversation.id).turns[0].answer, 60)
    turn = client.get_conversation(conversation.id).turns[0]
    assert turn.answer.startswith(seen)
    assert (turn.question, turn.finish_reason, turn.model) == ("Describe the image.", None, "playground")

    predictor.set_image(image)
    answer = client.ask("Describe the image.", conversation_id=conversation.id, turn=0)  # again
    assert answer == predictor.ask("Describe the image.")
    assert client.get_conversation(conversation.id).turns == (turn_of("Describe the image.", answer),)


def test_ratings_are_kept_with_the_answer_and_written_down(platform, client):
    example = playground_example("test", 0, 1, kinds=("name",))
    question = example.record.turns[0].question
    conversation = client.create_conversation(example.image, example.record.regions)
    answer = client.ask(question, conversation_id=conversation.id)
    ratings = [("up", "größer"), ("down", ""), (None, "")]
    for rating, comment in ratings:
        client.rate_answer(conversation.id, 0, rating, comment)
        (turn,) = client.get_conversation(conversation.id).turns
        assert (turn.rating, turn.comment, turn.answer) == (rating, comment, answer.text)

    lines = [line for path in Path(platform.environment["FERRET_HOME"], "feedback").rglob("*.jsonl") for line in path.open()]
    entries = [entry for entry in map(json.loads, lines) if entry["conversation"] == conversation.id]
    entries.sort(key=lambda entry: entry["time"])
    assert [(entry["rating"], entry["comment"]) for entry in entries] == [("up", "größer"), ("down", ""), ("withdrawn", "")]
    for entry in entries:
        assert len(entry["turn_id"]) == 32
        for name, value in {
            "turn": 0, "image_id": conversation.image_id, "model": "playground", "question": question, "answer": answer.text,
        }.items():  # fmt: skip
            assert entry[name] == value


def test_bad_requests_leave_a_conversation_as_it_was(platform, client):
    stub = FerretServiceStub(grpc.insecure_channel(platform.server))
    image = playground_example("test", 0).image
    data, size = png(image), image.size
    client.set_image(data)
    asked = [Turn("What is [region0]?", "It is a dog [0, 0, 500, 500].")]
    before = client.create_conversation(regions=[Point(5, 5)], history=asked)
    assert before.turns[0].spans[0].phrase == "a dog"

    def chat(question="Why?", **fields):
        return pb.ChatRequest(conversation_id=before.id, question=question, **fields)

    def create(**fields):
        return pb.CreateConversationRequest(image_bytes=data, **fields)

    def rate(**fields):
        return pb.RateAnswerRequest(conversation_id=before.id, **fields)

    def consume(request):
        return list(stub.Chat(request))

    point = region_to_proto(Point(5, 5))
    outside = {0: region_to_proto(Box(0, 0, size[0] + 50, 5))}
    many = dict.fromkeys(range(1, 65), point)
    unknown = "0" * 32
    invalid = [
        (consume, chat(""), "question: must not be empty"),
        (consume, chat("What is [region7]?"), "[region7] is not among the regions"),
        (consume, chat(image_bytes=data), "image_bytes: not with conversation_id"),
        (consume, chat(image_id=before.image_id), "image_id: not with conversation_id"),
        (consume, chat(history=[pb.Turn()]), "history: not with conversation_id"),
        (consume, chat(turn=2), "turn: must be at most 1, the number of turns; got 2"),
        (consume, chat(regions=many), "regions: at most 64 in all, got 65"),
        (consume, chat(regions={0: {}}), "regions[0]: shape"),
        (consume, chat(regions=outside), "regions[0]: box: x2 = "),
        (consume, chat(turn=0, sampling={"max_new_tokens": 0}), "max_new_tokens: must be at least 1"),
        (consume, pb.ChatRequest(image_bytes=data, question="x", turn=0), "turn: only with conversation_id"),
        (stub.CreateConversation, pb.CreateConversationRequest(), "image: set image_bytes, image_id or image_url"),
        (stub.CreateConversation, pb.CreateConversationRequest(image_bytes=b"hello"), "image: not one of JPEG"),
        (stub.CreateConversation, create(regions=many | {0: point}), "regions: at most 64 in all, got 65"),
        (stub.CreateConversation, create(regions=outside), "regions[0]: box: x2 = "),
        (stub.CreateConversation, create(turns=[pb.Turn()] * 1001), "turns: at most 1,000 turns"),
        (stub.CreateConversation, create(turns=[pb.Turn(answer="x" * 1_000_001)]), "turns: at most 1,000,000 characters"),
        (stub.CreateConversation, create(turns=[pb.Turn(question="[region7]")]), "turns[0].question: [region7] is not among"),
        (stub.CreateConversation, create(turns=[pb.Turn(), pb.Turn(answer="</s>")]), "turns[1].answer: '</s>' is reserved"),
        (stub.RateAnswer, rate(turn=1, rating=pb.RATING_UP), "turn: must be less than 1, the number of turns; got 1"),
        (stub.RateAnswer, rate(rating=7), "rating: must be unspecified, up or down; got 7"),
        (stub.RateAnswer, rate(rating=pb.RATING_UP, comment="x" * 10_001), "comment: at most 10,000 characters, got 10,001"),
    ]
    missing = [
        (consume, pb.ChatRequest(conversation_id=unknown, question="x"), "conversation_id: no conversation '000"),
        (consume, chat(model="gpt"), "model: no model 'gpt'"),
        (
            stub.GetConversation,
            pb.GetConversationRequest(conversation_id="../../platform.json"),
            "conversation_id: no conversation",
        ),
        (
            stub.RateAnswer,
            pb.RateAnswerRequest(conversation_id=unknown, rating=pb.RATING_UP),
            "conversation_id: no conversation",
        ),
        (stub.CreateConversation, pb.CreateConversationRequest(image_id="sha256:0"), "image_id: no image 'sha256:0'"),
        (stub.ExportConversation, pb.ExportConversationRequest(), "conversation_id: no conversation ''"),
        (stub.DeleteConversation, pb.DeleteConversationRequest(conversation_id=unknown), "conversation_id: no conversation"),
    ]
    for code, cases in ((grpc.StatusCode.INVALID_ARGUMENT, invalid), (grpc.StatusCode.NOT_FOUND, missing)):
        for call, request, says in cases:
            with pytest.raises(grpc.RpcError) as caught:
                call(request)
            assert caught.value.code() == code, caught.value.details()
            assert says in caught.value.details()
    assert client.get_conversation(before.id) == before


def test_bad_requests_name_the_field_and_the_platform_keeps_serving(platform, client):
    stub = FerretServiceStub(grpc.insecure_channel(platform.server))
    image = playground_example("test", 0).image
    data, size, bomb = png(image), image.size, png(Image.new("1", (9000, 9000)))
    point = {0: region_to_proto(Point(5, 5))}
    outside = {0: region_to_proto(Box(0, 0, size[0] + 50, 5))}
    unknown = "sha256:" + "0" * 64
    invalid = [
        (pb.ChatRequest(question="x"), "image: set image_bytes, image_id or image_url"),
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
    assert platform.decoder_rests()


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
    process, _, environment = start_platform(tmp_path)
    subprocess.run([*FERRET, "down"], env=environment, check=True)
    assert process.wait(60) == 0
    assert_none_left(tmp_path)
    assert not list(tmp_path.glob("*.json"))
    again = subprocess.run([*FERRET, "down"], env=environment, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (1, "no platform is up\n")


def test_interrupt_while_starting_leaves_no_process_behind(tmp_path):
    command = [*FERRET, "up", "--port", str(free_port()), "--http-port", str(free_port()), "--metrics-port", str(free_port())]
    with subprocess.Popen(
        command, env=os.environ | {"FERRET_HOME": str(tmp_path)}, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if "loading" in line:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert_none_left(tmp_path)
