"""A platform that is on its way down."""

import os
from contextlib import ExitStack

from services.platform import stop_platform
from services.platform_state import PlatformState, is_locked, lock, read_state, state_file, write_state


def test_a_platform_is_stopped_when_the_next_can_start(tmp_path, monkeypatch):
    """It lets go of its lock after it is known to nobody."""
    monkeypatch.setenv("FERRET_HOME", str(tmp_path))
    assert not stop_platform()
    ports = {"grpc_port": 1, "http_port": 2, "metrics_port": 3}
    with ExitStack() as running:
        running.enter_context(lock())
        write_state(PlatformState(pid=0, **ports, tls=False, ray_address="", ray_token="", started=0.0))
        assert read_state()
        monkeypatch.setattr(os, "kill", lambda pid, number: state_file().unlink())
        monkeypatch.setattr("time.sleep", lambda seconds: running.close())
        assert stop_platform()
        assert not is_locked()
