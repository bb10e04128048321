"""Real servers, which tests stop and bring back."""

import pytest

from tests.object_store import S3Server
from tests.redis_server import redis_server


@pytest.fixture
def redis(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def s3(monkeypatch, tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp("s3"))
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        server.start()
        yield server
    finally:
        server.stop()
