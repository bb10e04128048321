"""The HTTP side of the gateway, as a server calls it: what is read of a request, and of whose."""

import asyncio
import json
import logging

import pytest

from services.access import Limit, create_token
from services.openai.app import openai_app
from tests.scripted_platform import Platform


@pytest.fixture
def secret(tmp_path):
    return create_token(tmp_path / "tokens.yaml", "web", ("ask",), Limit(rate=1, burst=1))


@pytest.fixture
def app(tmp_path, secret):
    return openai_app(Platform(tmp_path, tokens_file=tmp_path / "tokens.yaml").gateway)


def post(app, receive, token=None):
    """The status and the body of an answer to a request whose body `receive` gives."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 5000),
    }
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def body(data):
    async def receive():
        return {"type": "http.request", "body": data, "more_body": False}

    return receive


async def never():
    raise AssertionError("the body was read")


def test_nothing_is_read_for_who_may_not_ask(app, secret, tmp_path):
    rater = create_token(tmp_path / "tokens.yaml", "rater", ("feedback",), Limit())
    for token, status, says in (
        (None, 401, "send `Bearer TOKEN`"),
        (f"{secret}x", 401, "not, or no longer, known"),
        (rater, 403, "does not allow 'ask'"),
    ):
        found, answer = post(app, never, token)
        assert found == status
        assert says in json.loads(answer)["error"]["message"]


def test_a_call_counts_once(app, secret):
    """The token allows one a minute."""
    image = "sha256:" + "0" * 64
    about = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "Why?"}]}
    question = json.dumps({"messages": [about]}).encode()
    assert [post(app, body(question), secret)[0] for _ in range(2)] == [404, 429]


def test_a_body_that_is_no_request_counts_as_a_call(app, secret, caplog):
    """The token allows one a minute: nothing is read of the next."""
    with caplog.at_level(logging.INFO, "ray.serve"):
        assert [post(app, receive, secret)[0] for receive in (body(b"{"), never)] == [400, 429]
    assert [record.args[:2] for record in caplog.records] == [("Chat", "INVALID_ARGUMENT"), ("Chat", "RESOURCE_EXHAUSTED")]


def test_a_client_that_goes_away_while_it_sends_is_no_incident(app, secret, caplog):
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    with caplog.at_level(logging.INFO, "ray.serve"):
        post(app, receive, secret)
    assert "incident" not in caplog.text
