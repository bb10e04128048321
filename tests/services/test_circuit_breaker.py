"""A server that goes away and comes back."""

import logging
import threading
import time

import pytest

from services.errors import UnavailableError
from services.stores import circuit_breaker
from services.stores.circuit_breaker import CircuitBreaker
from tests.processes import wait_until


class Server:
    def __init__(self):
        self.up, self.written = True, []
        self.breaker = CircuitBreaker("server", self.ask, (ConnectionError,), "nothing is kept")
        self.breaker.write_backs.append(lambda: self.written.append(self.breaker.up))

    def ask(self):
        if not self.up:
            raise ConnectionError("refused")

    def call(self):
        with self.breaker.call():
            self.ask()


@pytest.fixture
def server():
    server = Server()
    server.breaker.start()
    yield server
    server.breaker.close()


def test_calls_fail_at_once_until_it_is_back(server):
    server.up = False
    with pytest.raises(UnavailableError) as caught:
        server.call()
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert "refused" not in str(caught.value)  # it would reach a client
    server.ask = lambda: pytest.fail("asked again")
    with pytest.raises(UnavailableError):
        server.call()
    del server.ask
    server.up, server.written = True, []
    wait_until(lambda: server.breaker.up)
    server.call()
    assert server.written[0] is False  # before anybody calls


def test_a_loss_is_found_without_a_call(server):
    server.up = False
    wait_until(lambda: not server.breaker.up)


def test_a_loss_is_one_warning(server, caplog):
    with caplog.at_level(logging.INFO, logger="ray.serve"):
        for _ in range(2):
            server.up = False
            for _ in range(20):
                with pytest.raises(UnavailableError):
                    server.call()
            server.up = True
            wait_until(lambda: server.breaker.up)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["server is away (ConnectionError); until it is back, nothing is kept"]  # although it went twice
    assert "server is back after" in caplog.text


def test_a_loss_that_lasts_is_told_although_another_was_told_just_before(server, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        for _ in range(2):
            server.up = False
            with pytest.raises(UnavailableError):
                server.call()
            server.up = True
            wait_until(lambda: server.breaker.up)
        server.up = False
        wait_until(lambda: not server.breaker.up)
        assert caplog.text.count("is away") == 1
        monkeypatch.setattr(circuit_breaker, "_QUIET_SECONDS", 0)  # a minute later
        wait_until(lambda: caplog.text.count("is away") == 2)
        time.sleep(1)
        assert caplog.text.count("is away") == 2


def test_something_that_cannot_be_written_back_does_not_keep_the_server_away(server, caplog):
    identity = "0" * 32

    def fail():
        raise ValueError(identity)

    server.breaker.write_backs.append(fail)
    server.up = False
    with pytest.raises(UnavailableError):
        server.call()
    server.up = True
    wait_until(lambda: server.breaker.up)
    assert "cannot be written back (ValueError)" in caplog.text
    assert "in fail" in caplog.text
    assert identity not in caplog.text  # who knows the id may read the conversation


def test_what_is_not_the_servers_fault_passes(server):
    with pytest.raises(ValueError, match="question"), server.breaker.call():
        raise ValueError("question: must not be empty")
    assert server.breaker.up


def test_it_is_not_back_before_all_is_written(server):
    server.up = False
    with pytest.raises(UnavailableError):
        server.call()
    fails, tried = True, threading.Event()

    def write_back():
        tried.set()
        if fails:
            raise ConnectionError("disk full")

    server.breaker.write_backs.append(write_back)
    server.up = True
    assert tried.wait(30)
    time.sleep(0.1)
    assert not server.breaker.up
    fails = False
    wait_until(lambda: server.breaker.up)


def test_it_stops_looking():
    server, before = Server(), threading.enumerate()
    server.breaker.start()
    (thread,) = set(threading.enumerate()) - set(before)
    server.breaker.close()
    thread.join(30)
    assert not thread.is_alive()
