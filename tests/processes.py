"""Processes that tests start, and that must be gone afterwards."""

import socket

import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def descendants(process) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def assert_all_end(processes, seconds=30) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive, f"left behind: {[p.cmdline()[:3] for p in alive]}"
