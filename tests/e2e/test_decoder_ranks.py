"""A platform whose decoder is two processes."""

import signal

import pytest
import torch

from ferret_core.data.playground import playground_example
from ferret_core.geometry import Point
from ferret_core.predictor import FerretPredictor
from services.client import FerretClient
from tests.processes import Running, assert_none_left, start_platform, wait_until

pytestmark = pytest.mark.platform


def test_answers_are_the_predictors_also_when_a_rank_dies(tmp_path):
    (tmp_path / "two.yaml").write_text(
        "models: {playground: {path: playground, dtype: float32, llm_decoder: {tensor_parallel: 2}}}"
    )
    image, question, points = playground_example("test", 0).image, "What is [region0]?", [Point(100, 100)]
    predictor = FerretPredictor.from_pretrained("playground", device="cpu", dtype=torch.float32)
    predictor.set_image(image)
    expected = predictor.ask(question, points)
    process, server, environment = start_platform(tmp_path, "--config", str(tmp_path / "two.yaml"))
    platform = Running(server, environment)
    try:
        with FerretClient(server) as client:
            client.set_image(image)
            assert client.ask(question, points) == expected
            [rank], [decoder] = platform.processes("--multiprocessing-fork"), platform.processes("-llm-decoder")
            rank.kill()
            wait_until(lambda: not decoder.is_running())
            assert client.ask(question, points) == expected  # of another, which starts meanwhile
            assert len(platform.processes("--multiprocessing-fork")) == 1
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert_none_left(tmp_path)
