"""Reading from S3 where the network is not perfect."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ferret_core import s3

CONTENT = b"all of it"


@contextlib.contextmanager
def store(monkeypatch, broken: int) -> Iterator[list[str]]:
    """A store that breaks off its first `broken` answers; yields what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[: 3 if len(asked) <= broken else None])

        def log_message(self, *_) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield asked
        server.shutdown()
        thread.join()


def test_an_answer_that_breaks_off_is_asked_for_again(monkeypatch):
    with store(monkeypatch, broken=2) as asked:
        assert s3.read_object("s3://bucket/a/b.png") == CONTENT
    assert asked == ["/bucket/a/b.png"] * 3


def test_a_store_that_always_breaks_off_is_an_error_that_names_the_object(monkeypatch):
    with store(monkeypatch, broken=99) as asked, pytest.raises(OSError, match=r"s3://bucket/key: .*Incomplete"):
        s3.read_object("s3://bucket/key")
    assert 1 < len(asked) < 10
