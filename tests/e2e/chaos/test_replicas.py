"""Replicas are killed in the middle of their work, and hardly anybody notices."""

import time

import pytest
import torch
from grpc import StatusCode

from ferret_core.data.playground import playground_example
from ferret_core.geometry import Point
from ferret_core.predictor import FerretPredictor
from services.client import ServerError
from tests.e2e.chaos.conftest import LASTING, LONG
from tests.processes import Running, wait_until

pytestmark = pytest.mark.platform
AT_ONCE = 10
"""Answers, which slow each other down, so that they are cut in the middle. All may have to wait again: conftest.py's queue."""


def lost(platform: Running, stage: str) -> float:
    """Requests whose replica went away under them."""
    return platform.metric("ferret_replicas_lost_total", stage=stage)


@pytest.mark.parametrize("temperature", [0.0, 2.0], ids=["greedy", "sampled"])  # nonsense, but long
def test_a_decoder_dies_in_mid_answer(platform, client, temperature):
    def answers():
        sampling = {"temperature": temperature, "max_new_tokens": 150}
        return [client.stream("Describe the image.", seed=seed, **sampling) for seed in range(AT_ONCE)]

    expected, before = [list(stream) for stream in answers()], lost(platform, "llm_decoder")
    worked = {p: sum(p.cpu_times()[:2]) for p in platform.processes("-llm-decoder")}
    streams = answers()
    events = [[next(stream)] for stream in streams]
    busiest = max(worked, key=lambda p: sum(p.cpu_times()[:2]) - worked[p])
    busiest.kill()
    killed = time.monotonic()
    for some, stream in zip(events, streams, strict=True):
        some += stream
    print(f"all answers {time.monotonic() - killed:.1f} s after the decoder died")
    assert events == expected
    wait_until(lambda: lost(platform, "llm_decoder") > before)
    wait_until(lambda: len({*platform.processes("-llm-decoder")} - {busiest}) == len(worked), 120, 0.5)
    assert platform.decoder_rests()  # the new one has started, and is not the busiest for that


@pytest.mark.parametrize(("stage", "scene"), [("image_encoder", 11), ("region_sampler", 12)])
def test_a_stage_dies(platform, client, stage, scene):
    """It is asked again when it is back. Nobody has asked about this picture before: nothing of it is kept."""
    image, question, point = playground_example("test", scene).image, "What is [region0]?", [Point(100, 100)]
    predictor = FerretPredictor.from_pretrained("playground", device="cpu", dtype=torch.float32)
    predictor.set_image(image)
    client.set_image(image)
    killed = platform.processes(f"-{stage.replace('_', '-')}")
    assert killed
    for process in killed:
        process.kill()
    began = time.monotonic()
    answer = client.ask(question, point)
    print(f"an answer {time.monotonic() - began:.1f} s after the {stage} died")
    assert answer == predictor.ask(question, point)
    assert not {*killed} & {*platform.processes(f"-{stage.replace('_', '-')}")}


def test_the_gateway_dies(platform, client):
    """Whose answer has begun is told to ask again; others wait for another gateway."""
    expected = client.ask("What is [region0]?", [Point(100, 100)])
    (gateway,) = platform.processes(":gateway")
    begun = client.stream("Describe the image.", seed=LASTING[0], **LONG)
    next(begun)
    gateway.kill()
    killed = time.monotonic()
    with pytest.raises(ServerError, match="a replica went away; try again") as lost:
        list(begun)
    assert lost.value.code == StatusCode.UNAVAILABLE
    assert client.ask("What is [region0]?", [Point(100, 100)]) == expected
    print(f"an answer {time.monotonic() - killed:.1f} s after the gateway died")
