"""Questions about a picture go to the decoder that has read it."""

import time

import pytest

from ferret_core.data.playground import playground_example
from services.client import FerretClient

pytestmark = pytest.mark.platform

PICTURES = range(200, 208)
PATCHES = 196


def test_the_second_question_about_a_picture_finds_it_read(platform):
    """By chance it would for half of the pictures."""
    counted = "ferret_prompt_tokens_total"

    def settled(**labels):
        """What the decoders have reported when they have nothing more to report."""
        before = -1.0
        while (now := platform.metric(counted)) != before:
            before = now
            time.sleep(3)
        return platform.metric(counted, **labels)

    def ask(question):
        """Returns how many tokens of the prompts had been read before."""
        before = settled(kept="True")
        with FerretClient(platform.server) as client:
            for index in PICTURES:
                client.set_image(playground_example("test", index).image)
                client.ask(question, max_new_tokens=8)
        return settled(kept="True") - before

    assert ask("What is in the image?") < len(PICTURES) * PATCHES
    assert ask("Describe the image.") > len(PICTURES) * PATCHES
