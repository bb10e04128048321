"""Processes that tests start, and that must be gone afterwards. They are told apart by their FERRET_HOME."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from prometheus_client.parser import text_string_to_metric_families

FERRET = [sys.executable, "-m", "ferret_core.cli"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(found, seconds=30.0, pause=0.05):
    """What `found` returns, as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(pause)
    return result


def processes_of(home) -> list[psutil.Process]:
    """Every process, however far removed, that was started with this FERRET_HOME and is alive."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("FERRET_HOME") == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def assert_none_left(home, seconds=30) -> None:
    deadline = time.monotonic() + seconds
    while (left := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, f"left behind: {[process.cmdline()[:3] for process in left]}"


def start_platform(home, *arguments, metrics_port: int | None = None) -> tuple[subprocess.Popen, str, dict[str, str]]:
    """`ferret up`, ready: its process, its address, and the environment to meet it in.

    It computes in float32, ten times as slowly as it could: answers last long enough to be interrupted, and are exact.
    """
    environment = os.environ | {"FERRET_HOME": str(home), "FERRET_CPU_KERNELS": "0"}
    port = free_port()
    ports = ["--port", str(port), "--http-port", str(free_port()), "--metrics-port", str(metrics_port or free_port())]
    command = [*FERRET, "up", *ports, *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log = []
    for line in process.stderr:
        log.append(line)
        if "] ready: " in line:
            return process, f"localhost:{port}", environment
    raise AssertionError(f"the platform did not start: {''.join(log)}")


class Running(NamedTuple):
    """A platform that is up."""

    server: str
    environment: dict[str, str]

    @property
    def _state(self) -> dict[str, Any]:
        return json.loads(Path(self.environment["FERRET_HOME"], "platform.json").read_text())

    @property
    def http(self) -> str:
        """Its other address."""
        return f"http://localhost:{self._state['http_port']}"

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those with `name` in their title, as Ray gives them to actors: `ProxyActor`, `-llm-decoder`, `:gateway`."""
        found = []
        for process in processes_of(self.environment["FERRET_HOME"]):
            with contextlib.suppress(psutil.Error):  # it is gone
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """What Prometheus would read now, the sum of all replicas."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._state['metrics_port']}/metrics", timeout=10) as page:
            families = text_string_to_metric_families(page.read().decode())
        samples = [sample for family in families for sample in family.samples if sample.name == f"ray_{name}"]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def decoder_rests(self) -> bool:
        """Within half a minute: no answer is being written."""

        def worked() -> float:
            return sum(sum(decoder.cpu_times()[:2]) for decoder in self.processes("-llm-decoder"))

        for _ in range(15):
            before = worked()
            time.sleep(2)
            if worked() - before < 0.5:
                return True
        return False
