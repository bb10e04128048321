"""What can be seen of a running platform: metrics, traces, logs, `ferret status`."""

import contextlib
import json
import re
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from ferret_core.data.playground import playground_example
from ferret_core.geometry import Point
from services.client import FerretClient, InvalidRequestError
from tests.processes import FERRET, assert_none_left, free_port, start_platform, wait_until
from tests.trace_collector import trace_collector

pytestmark = pytest.mark.platform
QUESTION = "What is [region0]?"
UNHEARD = "Zanzibar"


@pytest.fixture(scope="module")
def collector():
    with trace_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def seen(collector, tmp_path_factory):
    """A platform that has answered one question, about a secret, in a span of the client, and refused another."""
    home, metrics_port = tmp_path_factory.mktemp("home"), free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        process, server, environment = start_platform(home, metrics_port=metrics_port)
    with FerretClient(server) as client, TracerProvider().get_tracer("test").start_as_current_span("user") as span:
        client.set_image(playground_example("test", 0).image)
        answer = client.ask(f"{UNHEARD}? {QUESTION}", [Point(100, 100)])
        with pytest.raises(InvalidRequestError):
            client.ask("What is [region7]?")
    yield {
        "home": home,
        "environment": environment,
        "metrics": metrics_port,
        "answer": answer,
        "trace": span.get_span_context().trace_id,
    }
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert_none_left(home)


def test_metrics(seen):
    tokens = seen["answer"].usage
    expected = {
        ("ferret_calls_total", "Chat", "OK"): 1,
        ("ferret_calls_total", "Chat", "INVALID_ARGUMENT"): 1,
        ("ferret_tokens_total", "playground", "answer"): tokens.completion_tokens,
        ("ferret_tokens_total", "playground", "prompt"): tokens.prompt_tokens,
        ("ferret_first_token_seconds_count", "playground"): 1,
        ("ferret_between_tokens_seconds_count", "playground"): tokens.completion_tokens - 1,
        ("ferret_answer_tokens_per_second_count", "playground"): 1,
        ("ferret_encoder_batch_size_count",): 1,
        ("ferret_sampler_batch_size_count",): 1,
        ("ferret_stage_seconds_count", "playground", "image_encoder"): 1,
        ("ferret_stage_seconds_count", "playground", "region_sampler"): 1,
        ("ferret_tokens_in_use",): 0,
    }
    expected = {(name, *sorted(labels)): value for (name, *labels), value in expected.items()}

    def values():
        with urllib.request.urlopen(f"http://127.0.0.1:{seen['metrics']}/metrics") as page:
            text = page.read().decode()
        found = {}
        for name, labels, value in re.findall(r"^ray_(ferret_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            kept = re.findall(r'(?:^|,)(?:method|code|kind|stage|model)="([^"]*)"', labels)
            found[(name, *sorted(kept))] = float(value)
        return {name: found.get(name) for name in expected}

    # Every replica reports at its own time.
    with contextlib.suppress(AssertionError):
        wait_until(lambda: values() == expected, 60, 1)
    assert values() == expected


def test_one_trace_joins_client_and_stages(seen, collector):
    collector.assert_joined(seen["trace"])


def test_logs_are_json_and_silent_about_what_was_said(seen):
    lines = [line for path in Path(seen["home"], "logs").rglob("*.log") for line in path.read_text().splitlines()]
    calls = [json.loads(line) for line in lines if "Chat" in line]
    assert {call["message"].rsplit(" ", 2)[0] for call in calls} == {"Chat OK", "Chat INVALID_ARGUMENT"}
    stages = [json.loads(line) for line in lines if "CALL Decode" in line]
    assert {call["request_id"] for call in stages} < {call["request_id"] for call in calls}
    assert not any(UNHEARD in line or seen["answer"].text in line for line in lines)


def test_status_tells_the_essentials(seen):
    def status():
        done = subprocess.run([*FERRET, "status"], env=seen["environment"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout if re.search(r"^failed calls +1$", done.stdout, re.MULTILINE) else None

    lines = wait_until(status, 60, 1)
    assert re.search(r"^playground-llm-decoder +HEALTHY +1 RUNNING$", lines, re.MULTILINE)
    assert re.search(r"^answers +1$", lines, re.MULTILINE)
