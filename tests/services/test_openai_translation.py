"""OpenAI's requests to ours and our answers to OpenAI's, and the HTTP side of a gateway whose models are scripts."""

import base64
import json
import re
from contextlib import suppress

import grpc
import numpy as np
import pytest
from ferret.v1 import ferret_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.exceptions import BackPressureError
from starlette.testclient import TestClient

from ferret_core.answer import Finish, TextDelta, Usage
from ferret_core.data.records import region_to_json
from ferret_core.engine import SamplingParams
from ferret_core.geometry import Box, Mask, Point, Polygon, Scribble
from ferret_core.grounding import Span
from services.calls import CallAbortedError
from services.openai.answers import ChunkStream, completion_from_proto
from services.openai.app import openai_app
from services.openai.errors import error_from_status
from services.openai.requests import parse_request, request_to_proto
from services.stage_wire import sampling_from_proto
from services.wire import event_to_proto, region_from_proto
from tests.scripted_platform import Platform

ID = "sha256:" + "0" * 64
IMAGE = {"type": "image_url", "image_url": {"url": ID, "detail": "auto"}}
SHAPES = [
    Point(1, 2),
    Box(1, 2, 3, 4),
    Polygon(((0, 0), (4, 0), (0, 4))),
    Scribble(((0, 0), (4, 4)), 3),
    Mask.from_array(np.eye(4)),
]


def user(*texts):
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def assistant(text):
    return {"role": "assistant", "content": text, "refusal": None, "tool_calls": None, "grounding": []}


def request(*messages, **fields):
    """About an image, in one message before the others."""
    return {"messages": [{"role": "user", "content": [IMAGE]}, *messages], **fields}


def to_proto(body) -> pb.ChatRequest:
    return request_to_proto(parse_request(json.dumps(body).encode()))


def test_a_question_is_put_as_over_grpc():
    chat = to_proto(request(user("Why?"), model="playground"))
    assert chat == pb.ChatRequest(model="playground", image_id=ID, question="Why?", sampling={})
    assert sampling_from_proto(chat.sampling) == SamplingParams()


def test_a_data_url_is_the_image():
    data = bytes(range(256))
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Why?"}]
    assert to_proto({"messages": [{"role": "user", "content": content}]}) == pb.ChatRequest(
        image_bytes=data, question="Why?", sampling={}
    )


def test_messages_are_turns():
    chat = to_proto(
        request(user("One?", "Two?"), assistant("Yes."), user("Three?"), assistant("No."), user("Four?"), user("!"))
    )
    assert [(turn.question, turn.answer) for turn in chat.history] == [("One?\nTwo?", "Yes."), ("Three?", "No.")]
    assert chat.question == "Four?\n!"


def test_the_same_image_may_be_shown_again():
    message = {"role": "user", "content": [IMAGE, {"type": "text", "text": "Why?"}]}
    assert to_proto({"messages": [message, assistant("So."), message]}).image_id == ID


def test_sampling_settings_by_their_names_there():
    fields = {"temperature": 1, "top_p": 0.5, "top_k": 3, "seed": 7, "stop": ["a", "b"], "max_completion_tokens": 9}
    chat = to_proto(request(user("Why?"), **fields, max_tokens=10))
    expected = SamplingParams(max_new_tokens=9, temperature=1.0, top_p=0.5, top_k=3, seed=7, stop=("a", "b"))
    assert sampling_from_proto(chat.sampling) == expected
    chat = to_proto(request(user("Why?"), max_tokens=10, stop="a", temperature=None))
    assert sampling_from_proto(chat.sampling) == SamplingParams(max_new_tokens=10, stop=("a",))


def test_what_has_no_bearing_on_the_answer_is_ignored():
    neutral = {
        "n": 1, "user": "me", "metadata": {"a": "b"}, "store": True, "logprobs": False, "frequency_penalty": 0.0, "tools": [],
        "response_format": {"type": "text"}, "logit_bias": {}, "tool_choice": "auto", "audio": None, "stop": None,
    }  # fmt: skip
    assert to_proto(request(user("Why?"), **neutral)) == to_proto(request(user("Why?")))


@pytest.mark.parametrize("as_list", [True, False])
def test_regions_are_written_as_in_records(as_list):
    written = [region_to_json(shape) for shape in SHAPES]
    regions = written if as_list else {str(number): region for number, region in enumerate(written)}
    chat = to_proto(request(user("What is [region0]?"), regions=regions))
    assert [region_from_proto(chat.regions[number]) for number in sorted(chat.regions)] == SHAPES


def test_regions_drawn_within_the_text_get_free_numbers():
    """The same shape the same number, so that a history that is sent again asks the same."""
    drawn = "<point>1,2</point> or <box>1, 2, 3.5, 4</box> or <polygon>0,0,4,0,0,4</polygon> or <scribble>0,0,4,4</scribble>"
    chat = to_proto(
        request(
            user("Is it [region0] or [region2]?"),
            assistant("It is <box>1,2,3,4</box>."),
            user(drawn),
            user("<point>1,2</point>?"),
            regions={"0": {"point": [5, 5]}, "2": {"point": [6, 6]}},
        )
    )
    assert chat.history[0].answer == "It is <box>1,2,3,4</box>."
    assert chat.question == "[region1] or [region3] or [region4] or [region5]\n[region1]?"
    assert {number: region_from_proto(region) for number, region in chat.regions.items()} == {
        0: Point(5, 5),
        1: Point(1, 2),
        2: Point(6, 6),
        3: Box(1, 2, 3.5, 4),
        4: Polygon(((0, 0), (4, 0), (0, 4))),
        5: Scribble(((0, 0), (4, 4))),
    }
    assert to_proto(request(user("<box>1,2,3,4 is <b>no</b> markup</box"))).question.startswith("<box>1,2")


BAD = [
    (b"{", "body: Invalid JSON"),
    (b"\xff", "body: Invalid JSON"),
    ([], "body: must be a JSON object"),
    (b'{"messages":[' + b"[]," * 1_000_000 + b"[]]}", "body: at most 1,000,000 values are accepted"),
    ({}, "messages: Field required"),
    ({"messages": []}, "messages: the first and the last must be the user's"),
    ({"messages": 3}, "messages: Input should be a valid"),
    ({"messages": [user("Why?")]}, "messages: there is no image; send it with the question"),
    (request(user("Why?"), frequency_penalty=0.5), "frequency_penalty: is not supported; leave it out or set it to 0"),
    (request(user("Why?"), n=2), "n: is not supported; leave it out or set it to 1"),
    (request(user("Why?"), verbosity="low"), "verbosity: is not supported; leave it out"),
    (request(user("Why?"), **{"x" * 500: 1}), "is not supported; leave it out"),
    (request(user("Why?"), max_tokens=0), "max_tokens: Input should be greater than or equal to 1"),
    (request(user("Why?"), max_tokens=2**40), "max_tokens: Input should be less than"),
    (request(user("Why?"), seed=-1), "seed: Input should be greater than or equal to 0"),
    (request(user("Why?"), temperature="hot"), "temperature: Input should be a valid number"),
    (request(user("Why?"), stop=[1]), "stop[0]: Input should be a valid string"),
    (request({"role": "tool", "content": "x"}), "messages[1].role: Input should be 'system'"),
    (request({"role": "user", "content": None}), "messages[1].content: must be text or a list of parts"),
    (request({"role": "user", "content": [{"type": "text"}]}), "messages[1].content[0]: needs its text"),
    (request({"role": "user", "content": [{"type": "input_audio"}]}), "messages[1].content[0].type: Input should be 'text'"),
    (request({"role": "system", "content": "Be kind."}, user("Why?")), "messages[1]: the model follows no system message"),
    (request(user("Why?"), assistant("So.")), "messages: the first and the last must be the user's"),
    ({"messages": [assistant("So."), *request(user("Why?"))["messages"]]}, "messages: the first and the last must be"),
    (
        request({"role": "assistant", "content": [IMAGE]}, user("Why?")),
        "messages[1].content[0]: an image must be in a message of the user",
    ),
    (request(user("Why?"), regions={"x": {}}), "regions: 'x' is not the N of a [regionN]"),
    (request(user("Why?"), regions={"1" * 10: {}}), "is not the N of a [regionN]"),
    (request(user("Why?"), regions={"3": {}}), "regions[3]: expected one of"),
    (request(user("Why?"), regions=[1]), "regions[0]: expected one of"),
    (request(user("Why?"), regions=[{"object": [1, 2, 3, 4]}]), "regions[0]: an object is for training"),
    (request(user("Why?"), regions=[{"point": [1]}]), "regions[0]: expected 2 numbers, got [1]"),
    (request(user("Why?"), regions=[{"point": [10**400, 1]}]), "regions[0]: point: x = "),
    (request(user("Why?"), regions=[{"polygon": ["x" * 1000]}]), "regions[0]: polygon: points = "),
    (request(user("Why?"), regions=[{"mask": {"size": [-1, 1], "counts": "0"}}]), "regions[0]: Value out of range: -1"),
    (request(user("<box>1,2,3</box>")), "messages[1].content: <box>: '1,2,3': expected 4 numbers"),
    (request(user("<scribble>1,2,3</scribble>")), "messages[1].content: <scribble>: '1,2,3': "),
    (request(user("<point>a,b</point>")), "messages[1].content: <point>: 'a,b': could not convert"),
]


def url(value):
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": value}}]}, user("Why?")]}


BAD += [
    (url("http://example.org/x.png"), "messages[0].content[0].image_url.url: must be a data URL"),
    (
        url("file:///etc/passwd"),
        "or https://HOST/... where the platform allows it; got 'file:///etc/passwd'",
    ),
    (url("data:image/png;base64,???"), "messages[0].content[0].image_url.url: the data is not base64"),
    (url("data:image/png,x"), "messages[0].content[0].image_url.url: must be a data URL"),
    (
        {"messages": url("data:;base64,")["messages"] + request()["messages"]},
        "messages: a conversation is about one image, got 2",
    ),
]


@pytest.mark.parametrize(("body", "says"), BAD, ids=[says[:40] for _, says in BAD])
def test_bad_requests_name_the_field(body, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        request_to_proto(parse_request(body if isinstance(body, bytes) else json.dumps(body).encode()))
    assert len(str(caught.value)) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([ID, "user", "text", "image_url"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=3)
            | st.sampled_from(["point", "box", "polygon", "scribble", "width", "mask", "size", "counts", "role", "content"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = ["model", "regions", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "n"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values), st.lists(json_values, max_size=2))
def test_nothing_but_a_value_error_comes_of_a_bad_request(fields, messages):
    with suppress(ValueError):
        sampling_from_proto(to_proto(request(user("Why?"), *messages, **fields)).sampling)


@given(st.text(st.characters(codec="utf-8")), st.integers(1, 5))
def test_text_without_markup_survives(text, count):
    text = text.replace("<", "")
    chat = to_proto(request(*[user(text)] * count))
    assert chat.question == "\n".join([text] * count if text else [])


SPAN = Span(phrase="a dög", box=Box(1, 2, 3, 4), start=3, end=8, box_start=9, box_end=21)
EVENTS = [
    TextDelta("It "),
    TextDelta("a dög [1, 2, 3, 4]"),
    SPAN,
    Finish("length", Usage(prompt_tokens=5, completion_tokens=2, dropped_turns=1)),
]
RESPONSES = [event_to_proto(event, ID, "m") for event in EVENTS]
GROUNDING = {"phrase": "a dög", "box": [1.0, 2.0, 3.0, 4.0], "start": 3, "end": 8, "box_start": 9, "box_end": 21}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "dropped_turns": 1}


def test_a_whole_answer():
    completion = completion_from_proto(RESPONSES)
    assert re.fullmatch(r"chatcmpl-\w{32}", completion.pop("id"))
    assert completion.pop("created") > 1.7e9
    message = {"role": "assistant", "content": "It a dög [1, 2, 3, 4]", "refusal": None, "grounding": [GROUNDING]}
    assert completion == {
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}],
        "usage": USAGE,
        "image_id": ID,
    }


@pytest.mark.parametrize("include_usage", [True, False])
def test_an_answer_in_chunks(include_usage):
    stream = ChunkStream("m", include_usage)
    chunks = [stream.begin(), *(chunk for response in RESPONSES for chunk in stream.feed(response))]
    assert {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        (stream.id, "chat.completion.chunk", stream.created, "m")
    }
    last = chunks.pop() if include_usage else {"choices": [], "usage": USAGE}
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert [chunk.get("usage", "absent") for chunk in chunks] == [None if include_usage else "absent"] * 5
    assert [(choice["delta"], choice["finish_reason"]) for chunk in chunks for choice in chunk["choices"]] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "It "}, None),
        ({"content": "a dög [1, 2, 3, 4]"}, None),
        ({"grounding": [GROUNDING]}, None),
        ({}, "length"),
    ]
    assert chunks[-1]["image_id"] == ID


@pytest.mark.parametrize(
    ("code", "message", "status", "kind", "param"),
    [
        ("INVALID_ARGUMENT", "temperature: must be in [0, 5], got 9", 400, "invalid_request_error", "temperature"),
        ("INVALID_ARGUMENT", "regions[3]: box: x2", 400, "invalid_request_error", "regions[3]"),
        ("INVALID_ARGUMENT", "history[2].question: '</s>' is reserved", 400, "invalid_request_error", "messages"),
        ("INVALID_ARGUMENT", "max_new_tokens: too many", 400, "invalid_request_error", "max_completion_tokens"),
        ("INVALID_ARGUMENT", "messages[0].content: no", 400, "invalid_request_error", "messages[0].content"),
        ("UNAUTHENTICATED", "who are you?", 401, "authentication_error", None),
        ("PERMISSION_DENIED", "token: not allowed", 403, "permission_error", None),
        ("NOT_FOUND", "image_id: no image 'x'; upload it again, or send image_bytes", 404, "invalid_request_error", "messages"),
        ("RESOURCE_EXHAUSTED", "busy: try again", 429, "rate_limit_error", None),
        ("UNAVAILABLE", "a replica went away", 503, "server_error", None),
        ("DEADLINE_EXCEEDED", "too long", 504, "server_error", None),
        ("INTERNAL", "internal error: incident 12", 500, "server_error", None),
        ("UNKNOWN", "?", 500, "server_error", None),
    ],
)  # fmt: skip
def test_statuses(code, message, status, kind, param):
    got, body = error_from_status(grpc.StatusCode[code], message)
    assert got == status
    message = message.replace("max_new_tokens", "max_completion_tokens").replace("image_bytes", "it as a data URL")
    assert body == {"error": {"message": message, "type": kind, "param": param, "code": code.lower()}}


@pytest.fixture
def platform(tmp_path):
    return Platform(tmp_path)


@pytest.fixture
def http(platform):
    with TestClient(openai_app(platform.gateway)) as client:
        yield client


def ask(platform, **fields):
    url = f"data:image/png;base64,{base64.b64encode(platform.image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Why?"}]
    return {"messages": [{"role": "user", "content": content}], **fields}


def events(response):
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    return [event.removeprefix("data: ") for event in events]


def test_a_stream_as_it_is_on_the_wire(platform, http):
    platform.decoder.say("Größe")
    platform.decoder.say(".", "stop")
    *chunks, done = events(http.post("/v1/chat/completions", json=ask(platform, stream=True)))
    assert done == "[DONE]"
    texts = [json.loads(chunk)["choices"][0]["delta"].get("content") for chunk in chunks]
    assert texts == ["", "Größe", ".", None]


def test_a_stream_that_fails_says_so_and_has_no_end(platform, http):
    platform.decoder.say("Because")
    platform.decoder.deltas.put_nowait(RuntimeError("secret=hunter2"))
    *_, word, last = events(http.post("/v1/chat/completions", json=ask(platform, stream=True)))
    assert "Because" in word
    error = json.loads(last)["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal")
    assert "incident" in error["message"]
    assert "hunter2" not in last


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "says"), [(BackPressureError(1, 1), 429, "busy"), (RuntimeError("secret=hunter2"), 500, "incident")]
)
def test_what_fails_before_the_first_word_has_a_status(platform, http, stream, error, status, says):
    platform.decoder.deltas.put_nowait(error)
    response = http.post("/v1/chat/completions", json=ask(platform, stream=stream))
    assert response.status_code == status
    assert response.headers.get("retry-after") == ("2" if status == 429 else None)
    assert says in response.json()["error"]["message"]
    assert "hunter2" not in response.text


def test_a_call_knows_who_calls_and_says_when_to_call_again(platform):
    """As the gateway's methods find it in gRPC's context."""
    seen = []

    async def list_models(request, context):
        seen.append((context.peer(), context.auth_context(), dict(context.invocation_metadata())["authorization"]))
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details("too many; try again in 7 s")
        context.set_trailing_metadata([("retry-after", "7")])
        raise CallAbortedError("too many", grpc.StatusCode.RESOURCE_EXHAUSTED)

    platform.gateway.ListModels = list_models
    for client, base_url in ((("10.0.0.7", 5000), "http://ferret"), (("::1", 5000), "https://ferret")):
        http = TestClient(openai_app(platform.gateway), base_url, client=client)
        response = http.get("/v1/models", headers={"Authorization": "Bearer secret"})
        assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    tls = {"transport_security_type": [b"ssl"]}
    assert seen == [("ipv4:10.0.0.7:5000", {}, "Bearer secret"), ("ipv6:[::1]:5000", tls, "Bearer secret")]


def test_what_is_not_served(platform, http):
    body = json.dumps(ask(platform))
    cases = [
        (http.get("/v1/completions"), 404, "no GET /v1/completions; there are POST /v1/chat/completions"),
        (http.get("/v1/chat/completions"), 405, "no GET /v1/chat/completions; there are"),
        (http.post("/v1/chat/completions", content=body), 415, "Content-Type: must be application/json"),
        (
            http.post("/v1/chat/completions", content=b" " * 40_000_000, headers={"Content-Type": "application/json"}),
            413,
            "bytes are accepted",
        ),
        (http.get("/v1/models/gpt"), 404, "model: no model 'gpt'; there are playground"),
    ]
    for response, status, says in cases:
        assert response.status_code == status
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert says in error["message"]


def test_models(http):
    (model,) = http.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("playground", "model")
    assert http.get("/v1/models/playground").json() == model
