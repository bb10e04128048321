"""Serve's controller is killed while clients ask. No answer passes through it; who replaces and adds replicas is it."""

import random

import pytest

from ferret_core.geometry import Point
from tests.asking import Asking
from tests.processes import wait_until

pytestmark = pytest.mark.platform
QUESTION = "Describe the image."


def test_the_controller_dies(platform, client):
    expected = client.ask(QUESTION)
    (controller,) = platform.processes("ServeController")
    with Asking(*[lambda: client.ask(QUESTION)] * 2) as asking:
        asking.some_more()
        controller.kill()
        wait_until(lambda: [one for one in platform.processes("ServeController") if one != controller], 120)
        asking.some_more(10)
    print(asking)
    assert asking.failures == []
    assert all(answer == expected for answer in asking.answers)

    decoder, _ = platform.processes("-llm-decoder")  # it sees who dies
    decoder.kill()
    wait_until(lambda: len(set(platform.processes("-llm-decoder")) - {decoder}) == 2, 120, 0.5)
    assert client.ask(QUESTION) == expected

    def ask_about_a_new_region():
        return client.ask("What is [region0]?", [Point(100 * random.random(), 100 * random.random())], max_new_tokens=1)

    wait_until(lambda: len(platform.processes("-region-sampler")) == 1, 120, 0.5)
    with Asking(*[ask_about_a_new_region] * 4) as asking:  # and who has too much to do
        wait_until(lambda: len(platform.processes("-region-sampler")) == 2, 120, 0.5)
    assert asking.failures == []
