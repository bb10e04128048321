"""Processes that tests start, and that must be gone afterwards. They are told apart by their FERRET_HOME."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import psutil

FERRET = [sys.executable, "-m", "ferret_core.cli"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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


def start_platform(home, *arguments) -> tuple[subprocess.Popen, str, dict[str, str]]:
    """`ferret up`, ready: its process, its address, and the environment to meet it in."""
    environment = os.environ | {"FERRET_HOME": str(home)}
    port = free_port()
    command = [*FERRET, "up", "--port", str(port), "--http-port", str(free_port()), *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log = []
    for line in process.stderr:
        log.append(line)
        if "ready" in line:
            return process, f"localhost:{port}", environment
    raise AssertionError(f"the platform did not start: {''.join(log)}")


class Running(NamedTuple):
    """A platform that is up."""

    server: str
    environment: dict[str, str]

    def processes(self) -> list[psutil.Process]:
        return processes_of(self.environment["FERRET_HOME"])

    def decoder_rests(self) -> bool:
        """Within half a minute: no answer is being written."""
        (decoder,) = [p for p in self.processes() if "llm-decoder" in p.name() or "llm-decoder" in " ".join(p.cmdline())]
        for _ in range(15):
            before = sum(decoder.cpu_times()[:2])
            time.sleep(2)
            if sum(decoder.cpu_times()[:2]) - before < 0.5:
                return True
        return False
