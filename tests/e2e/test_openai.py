"""The platform to OpenAI's own client, to whoever sends it JSON, and to readers of `docs/openai.md`."""

import asyncio
import base64
import contextlib
import dataclasses
import http.client
import io
import json
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import openai
import pytest
import torch

from ferret_core.data.playground import GESTURES, playground_example
from ferret_core.data.records import region_to_json
from ferret_core.images import image_bytes, image_id
from ferret_core.predictor import FerretPredictor
from ferret_core.prompt import Turn
from tests.processes import Running, assert_none_left, start_platform
from tests.test_readme import ROOT, assert_prints, blocks

pytestmark = pytest.mark.platform

DOCS = (ROOT / "docs" / "openai.md").read_text()
MODEL = "playground"


@pytest.fixture(scope="module")
def predictor():
    return FerretPredictor.from_pretrained(MODEL, device="cpu", dtype=torch.float32)


@pytest.fixture
def stock(platform):
    with openai.OpenAI(base_url=f"{platform.http}/v1", api_key="-", max_retries=0) as client:
        yield client


def data_url(image) -> str:
    return f"data:image/png;base64,{base64.b64encode(image_bytes(image)).decode()}"


def about(url, question):
    """The first message of a conversation."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return {"role": "user", "content": content}


def grounding(spans):
    """Spans as the docs say that they are written."""
    return [{**dataclasses.asdict(span), "box": list(dataclasses.astuple(span.box))} for span in spans]


def assert_same(completion, answer):
    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == (answer.text, answer.finish_reason)
    assert choice.message.grounding == grounding(answer.spans)
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.dropped_turns == answer.usage.dropped_turns
    assert (completion.model, completion.object) == (MODEL, "chat.completion")


@pytest.mark.parametrize("gesture", GESTURES)
def test_answers_equal_the_predictors(gesture, stock, predictor):
    """With every kind of region, the image in a data URL and then by its id, and the turns before."""
    example = playground_example("test", 1, 2, gestures=(gesture,), kinds=("name", "relate", "describe"))
    predictor.set_image(example.image)
    regions = dict(enumerate(example.record.regions))
    extra = {"regions": {number: region_to_json(region) for number, region in regions.items()}}
    first, second = (turn.question for turn in example.record.turns)

    completion = stock.chat.completions.create(model=MODEL, messages=[about(data_url(example.image), first)], extra_body=extra)
    answer = predictor.ask(first, regions)
    assert_same(completion, answer)
    assert completion.image_id == image_id(image_bytes(example.image))
    messages = [about(completion.image_id, first), completion.choices[0].message, {"role": "user", "content": second}]
    completion = stock.chat.completions.create(model=MODEL, messages=messages, extra_body=extra)
    assert_same(completion, predictor.ask(second, regions, [Turn(first, answer.text)]))


def test_a_region_within_the_text(stock, predictor):
    example = playground_example("test", 2, 1, kinds=("name",), gestures=("box",))
    predictor.set_image(example.image)
    (region,) = example.record.regions
    drawn = f"<box>{','.join(map(str, dataclasses.astuple(region)))}</box>"
    question = example.record.turns[0].question
    completion = stock.chat.completions.create(
        model=MODEL, messages=[about(data_url(example.image), question.replace("[region0]", drawn))]
    )
    assert_same(completion, predictor.ask(question, [region]))


def test_a_stream_says_the_same_piece_by_piece(stock, predictor):
    example = playground_example("test", 0)
    predictor.set_image(example.image)
    answer = predictor.ask("Describe the image.")
    assert answer.spans
    stream = stock.chat.completions.create(
        model=MODEL,
        messages=[about(data_url(example.image), "Describe the image.")],
        stream=True,
        stream_options={"include_usage": True},
    )
    first, *chunks, end, usage = stream
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    text, spans, pieces = "", [], 0
    for chunk in chunks:
        assert chunk.usage is None
        delta = chunk.choices[0].delta
        if delta.content is not None:
            text, pieces = text + delta.content, pieces + 1
        for span in getattr(delta, "grounding", []):
            spans.append(span)
            assert len(text) - span["box_end"] < 3  # it comes as soon as its box closes
    assert pieces > 5
    assert (text, spans) == (answer.text, grounding(answer.spans))
    assert (end.choices[0].finish_reason, end.image_id) == ("stop", image_id(image_bytes(example.image)))
    assert usage.choices == []
    assert usage.usage.completion_tokens == answer.usage.completion_tokens
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {(end.id, end.created, MODEL)}


def test_settings_reach_the_model(stock, predictor):
    example = playground_example("test", 1)
    predictor.set_image(example.image)
    settings = {"temperature": 1.2, "top_p": 0.9, "seed": 7}
    messages = [about(data_url(example.image), "Describe the image.")]
    completion = stock.chat.completions.create(model=MODEL, messages=messages, max_tokens=8, n=1, user="me", **settings)
    answer = predictor.ask("Describe the image.", max_new_tokens=8, **settings)
    assert_same(completion, answer)
    assert answer.finish_reason == "length"
    word = answer.text.split()[2]
    completion = stock.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=8, stop=word, **settings)
    assert_same(completion, predictor.ask("Describe the image.", max_new_tokens=8, stop=(word,), **settings))
    assert word not in completion.choices[0].message.content


def test_the_asynchronous_client(platform, predictor):
    example = playground_example("test", 4, 1, kinds=("locate",))
    predictor.set_image(example.image)
    question = example.record.turns[0].question
    messages = [about(data_url(example.image), question)]

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{platform.http}/v1", api_key="-", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == [MODEL]
            whole, stream = await asyncio.gather(
                client.chat.completions.create(model=MODEL, messages=messages),
                client.chat.completions.create(model=MODEL, messages=messages, stream=True),
            )
            chunks = [chunk async for chunk in stream]
            assert all(chunk.usage is None for chunk in chunks)
            return whole, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    completion, text = asyncio.run(ask())
    answer = predictor.ask(question)
    assert_same(completion, answer)
    assert text == answer.text


def test_models(stock):
    assert [model.id for model in stock.models.list()] == [MODEL]
    assert stock.models.retrieve(MODEL).context_length == 2048
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        stock.models.retrieve("gpt")


@pytest.mark.parametrize("stream", [True, False])
def test_bad_requests_name_the_field(stock, stream):
    image = playground_example("test", 0).image
    url, unknown = data_url(image), "sha256:" + "0" * 64
    outside = {"regions": [{"box": [0, 0, image.size[0] + 50, 5]}]}
    why = about(url, "Why?")
    bad = openai.BadRequestError
    cases = [
        (bad, "messages", "messages: there is no image", {"messages": [{"role": "user", "content": "Why?"}]}),
        (bad, "messages", "image: not one of JPEG", {"messages": [about("data:image/png;base64,aGVsbG8=", "Why?")]}),
        (bad, "messages", "question: must not be empty", {"messages": [about(url, " ")]}),
        (bad, "messages", "[region7] is not among the regions", {"messages": [about(url, "What is [region7]?")]}),
        (bad, "messages", "'</s>' is reserved", {"messages": [about(url, "</s>")]}),
        (bad, "messages", "image_url: this platform fetches no pictures", {"messages": [about("https://a.org/b.png", "Why?")]}),
        (bad, "messages[0]", "follows no system message", {"messages": [{"role": "system", "content": "Be kind."}, why]}),
        (bad, "regions[0]", "regions[0]: box: x2 = ", {"messages": [why], "extra_body": outside}),
        (bad, "regions", "at most 64", {"messages": [why], "extra_body": {"regions": [{"point": [1, 1]}] * 65}}),
        (bad, "temperature", "temperature: must be in [0, 5]", {"messages": [why], "temperature": 9}),
        (bad, "n", "n: is not supported", {"messages": [why], "n": 2}),
        (bad, "max_completion_tokens", "must be less than the context of 2048", {"messages": [why], "max_tokens": 9999}),
        (openai.NotFoundError, "messages", "send it as a data URL", {"messages": [about(unknown, "Why?")]}),
        (openai.NotFoundError, "model", "no model 'gpt'; there are playground", {"messages": [why], "model": "gpt"}),
    ]
    for kind, param, says, fields in cases:
        with pytest.raises(kind, match=re.escape(says)) as caught:
            stock.chat.completions.create(**{"model": MODEL, "stream": stream} | fields)
        error = caught.value
        assert (error.param, error.type) == (param, "invalid_request_error")
        assert error.code == ("invalid_argument" if kind is bad else "not_found")
    completion = stock.chat.completions.create(model=MODEL, messages=[about(url, "Describe the image.")])
    assert completion.choices[0].finish_reason == "stop"


def post(platform, body, **headers) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(urlsplit(platform.http).netloc, timeout=120)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"} | headers)
    return connection


def test_what_is_no_request_at_all(platform):
    for body, headers, status in [
        (b"", {}, 400),
        (b"{", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', {}, 400),
        (b" " * 60_000_000, {}, 413),
        (b"{}", {"Content-Type": "text/plain"}, 415),
    ]:
        with contextlib.closing(post(platform, body, **headers)) as connection:
            response = connection.getresponse()
            assert response.status == status
            assert json.load(response)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_does_not_hold_the_decoder(platform, stream):
    messages = [about(data_url(playground_example("test", 0).image), "Describe the image.")]
    body = {"messages": messages, "stream": stream, "temperature": 5, "max_tokens": 1500}
    connections = [post(platform, json.dumps({**body, "seed": seed})) for seed in range(10)]
    if stream:
        for connection in connections:
            assert connection.getresponse().readline().startswith(b"data: ")
    else:
        time.sleep(2)  # answers have begun
    for connection in connections:
        connection.close()
    assert platform.decoder_rests()


def test_a_busy_platform_says_when_to_ask_again(tmp_path):
    """Both where the gateway finds a stage busy and where its own queue is full; and then the stock client does ask again."""
    (tmp_path / "small.yaml").write_text("""
        models: {playground: {path: playground, llm_decoder: {max_ongoing_requests: 1, max_queued_requests: 1}}}
        gateway: {max_ongoing_requests: 4, max_queued_requests: 1}
    """)
    process, server, environment = start_platform(tmp_path, "--config", str(tmp_path / "small.yaml"))
    platform = Running(server, environment)
    messages = [about(data_url(playground_example("test", 0).image), "Describe the image.")]

    def ask(seed):
        body = {"messages": messages, "temperature": 5, "max_tokens": 300, "seed": seed}
        with contextlib.closing(post(platform, json.dumps(body))) as connection:
            response = connection.getresponse()
            return response.status, response.headers["Retry-After"], response.read().decode()

    try:
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(ask, range(16)))
            refused = [(after, text) for status, after, text in answers if status == 429]
            assert {status for status, _, _ in answers} == {200, 429}
            assert {after for after, _ in refused} == {"2"}
            stages = [json.loads(text)["error"] for _, text in refused if text.startswith("{")]
            assert {(error["type"], error["code"]) for error in stages} == {("rate_limit_error", "resource_exhausted")}
            assert len(stages) < len(refused)

            rest = threads.map(ask, range(4))
            with openai.OpenAI(base_url=f"{platform.http}/v1", api_key="-", max_retries=30) as client:
                completion = client.chat.completions.create(model=MODEL, messages=messages)
            assert completion.choices[0].finish_reason == "stop"
            list(rest)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert_none_left(tmp_path)


def test_the_docs_run(platform, monkeypatch):
    """Every block in order; only the address differs from what is written."""
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for language, code in blocks(DOCS.replace("http://localhost:8000", platform.http), "python", "sh", "json"):
        if language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(code, "openai.md", "exec"), names)
            told = re.findall(r"print\(.*\)  # (.*)", code)
            assert_prints(told, output.getvalue().splitlines()[: len(told)])
        elif language == "sh":
            answered = subprocess.run(code, shell=True, check=True, capture_output=True, text=True).stdout
        else:
            assert json.loads(code) == json.loads(answered)
    assert re.fullmatch(r"It is a waffle \[.*\]\.? <- a waffle is at \[.*\]\.?\n\d+ \+ \d+ tokens\n", output.getvalue())
