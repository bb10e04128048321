"""Serve's proxy is killed while clients ask. It is all that they talk to, and it comes back."""

import time

import grpc
import pytest

from services.client import ServerError
from tests.asking import Asking
from tests.processes import wait_until

pytestmark = pytest.mark.platform
QUESTION = "Describe the image."


def test_the_proxy_dies(platform, client):
    conversation = client.create_conversation()
    expected = client.ask(QUESTION, conversation_id=conversation.id)
    kept = client.get_conversation(conversation.id)
    (proxy,) = platform.processes("ProxyActor")
    with Asking(*[lambda: client.ask(QUESTION)] * 2, lambda: client.get_conversation(conversation.id)) as asking:
        asking.some_more()
        proxy.kill()
        killed = time.monotonic()
        wait_until(lambda: [one for one in platform.processes("ProxyActor") if one != proxy], 120)
        back = time.monotonic()
        asking.some_more(10)
        answered = time.monotonic()
    print(f"another proxy after {back - killed:.1f} s, ten answers after {answered - killed:.1f} s; {asking}")
    for error in asking.failures:
        assert isinstance(error, ServerError)
        assert error.code == grpc.StatusCode.UNAVAILABLE
        assert "try again" in str(error) or "no platform answers" in str(error)
    assert all(answer in (expected, kept) for answer in asking.answers)
    assert client.ask(QUESTION, conversation_id=conversation.id, turn=0) == expected
