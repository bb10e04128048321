"""One running platform for all end-to-end tests."""

import signal

import pytest

from services.client import FerretClient
from tests.processes import Running, assert_none_left, processes_of, start_platform


@pytest.fixture(scope="session")
def platform(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    process, server, environment = start_platform(home)
    assert len(processes_of(home)) > 5
    yield Running(server, environment)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert_none_left(home)


@pytest.fixture
def client(platform):
    with FerretClient(platform.server) as client:
        yield client
