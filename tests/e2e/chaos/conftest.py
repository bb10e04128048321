"""One platform for all that breaks it: two decoders with a short queue, a sampler that may grow, one of everything else."""

import signal
from collections.abc import Iterator

import pytest
import yaml

from ferret_core.data.playground import playground_example
from services.client import FerretClient
from tests.processes import Running, assert_none_left, start_platform

DECODERS, STREAMS, QUEUE = 2, 25, 10
"""Decoders, answers that each writes at a time, and questions that wait for one of them."""
LONG = {"temperature": 5.0, "max_new_tokens": 1500}
"""Nonsense."""
LASTING = (9, 10, 12, 21, 23, 27, 32, 36, 37, 39)
"""Seeds with which it has all its tokens: who leaves, leaves in mid answer."""
MORE_MEMORY = 128
"""MiB by which a replica may grow that keeps nothing: the allocator's noise."""

MODEL = {
    "path": "playground",
    "llm_decoder": {
        "min_replicas": DECODERS,
        "max_replicas": DECODERS,
        "max_ongoing_requests": STREAMS,
        "max_queued_requests": QUEUE,
    },
    "region_sampler": {
        "max_replicas": 2,
        "target_ongoing_requests": 0.1,
        "upscale_delay_seconds": 0,
        "downscale_delay_seconds": 5,
    },
}


@pytest.fixture(scope="package")  # it is gone before those of other tests start
def platform(tmp_path_factory) -> Iterator[Running]:
    """Whatever was done to it, it ends when it is told to, and nothing of it is left."""
    home = tmp_path_factory.mktemp("home")
    config = home / "chaos.yaml"
    config.write_text(yaml.safe_dump({"models": {"playground": MODEL}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        process, server, environment = start_platform(home, "--config", str(config))
    yield Running(server, environment)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert_none_left(home)


@pytest.fixture
def client(platform) -> Iterator[FerretClient]:
    with FerretClient(platform.server) as client:
        client.set_image(playground_example("test", 0).image)
        yield client
