"""Processes that tests start, and that must be gone afterwards. They are told apart by their FERRET_HOME."""

import contextlib
import socket
import time

import psutil


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
