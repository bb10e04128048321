"""The platform with Redis and S3, which both die under questions and come back."""

import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceStub

from ferret_core.data.playground import playground_example
from ferret_core.geometry import Point
from ferret_core.images import image_bytes, image_id
from services.client import FerretClient, NotFoundError
from services.settings import StoreSettings
from services.stores import open_stores
from tests.asking import Asking
from tests.object_store import BUCKET, S3Server
from tests.processes import FERRET, assert_none_left, start_platform, wait_until
from tests.redis_server import redis_server

pytestmark = pytest.mark.platform

QUESTION = "What is [region0]?"


class Session:
    """Logs and metrics of the platform."""

    def __init__(self, directory, home):
        self.directory, self.home = Path(directory), home

    def warnings(self, server):
        logs = [path.read_text() for path in self.home.glob("logs/*gateway*")]
        return sum(log.count(f"{server} is away (") for log in logs)

    def metric(self, name, server):
        """Of each gateway, as Prometheus would read it."""
        (file,) = self.directory.glob("ferret-*/session_2*/metrics_export_port_*")
        with urllib.request.urlopen(f"http://127.0.0.1:{file.read_text()}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return [float(line.split()[-1]) for line in lines if line.startswith(f"ray_{name}{{") and f'server="{server}"' in line]


@pytest.fixture
def servers(tmp_path, monkeypatch):
    """Redis, S3, and an environment that leads there."""
    s3 = S3Server(tmp_path / "s3")
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as redis:
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        variables = s3.environment | {"FERRET_REDIS_URL": redis.url, "FERRET_S3_URL": f"s3://{BUCKET}/platform"}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            s3.start()
            yield redis, s3
        finally:
            s3.stop()


@pytest.fixture
def session(monkeypatch, tmp_path):
    """What Ray writes down."""
    directory = tempfile.mkdtemp(prefix="f-", dir="/tmp")  # short: sockets lie there, too
    monkeypatch.setenv("TMPDIR", directory)
    yield Session(directory, tmp_path / "home")
    shutil.rmtree(directory, ignore_errors=True)


def test_servers_that_die_under_questions(servers, session, tmp_path):
    redis, s3 = servers
    environment = os.environ | {"FERRET_HOME": str(tmp_path / "home"), "FERRET_REDIS_URL": "redis://127.0.0.1:1"}
    wrong = subprocess.run([*FERRET, "up"], env=environment, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "ferret: stores.redis_url: no server answers at redis://127.0.0.1:1" in wrong.stderr
    (tmp_path / "platform.yaml").write_text("gateway: {min_replicas: 2, max_replicas: 2}\n")
    process, server, _ = start_platform(tmp_path / "home", "--config", str(tmp_path / "platform.yaml"))
    elsewhere = open_stores(StoreSettings(directory=tmp_path / "elsewhere"))  # as a replica on another machine
    images = [image_bytes(playground_example("test", i).image) for i in range(3)]
    point = Point(60, 60)
    try:
        with FerretClient(server) as client:
            conversation = client.create_conversation(images[0], [point])
            expected = client.ask(QUESTION, conversation_id=conversation.id)
            for _ in range(20):  # both replicas meet it
                assert client.get_conversation(conversation.id).turns[0].answer == expected.text
            assert elsewhere.conversations.get(conversation.id).turns[0].answer == expected.text

            stub = FerretServiceStub(grpc.insecure_channel(server))

            def ask_with_image():
                return [*stub.Chat(pb.ChatRequest(image_bytes=images[1], question="Describe the image."))][-1].finish.reason

            def ask_again():
                return client.ask(QUESTION, conversation_id=conversation.id, turn=0).finish_reason

            with Asking(ask_with_image, ask_again) as asking:
                asking.some_more()
                redis.stop()
                s3.stop()
                asking.some_more()
                new = client.create_conversation(images[2], [point])
                answer = client.ask(QUESTION, conversation_id=new.id)
                client.rate_answer(new.id, 0, "up", "although nobody was at home")
                assert client.get_conversation(new.id).turns[0].answer == answer.text
                for name in ("redis", "s3"):
                    wait_until(lambda name=name: session.metric("ferret_store_up", name) == [0, 0], 60)
                asking.some_more()
                redis.start()
                s3.start()
                for name in ("redis", "s3"):
                    wait_until(lambda name=name: session.metric("ferret_store_up", name) == [1, 1], 60)
                asking.some_more()
            assert asking.failures == []
            print(asking)

            kept = client.get_conversation(new.id)
            wait_until(lambda: not [path for path in (tmp_path / "home" / "spool").rglob("*") if path.is_file()], 60)
            turn = elsewhere.conversations.get(new.id).turns[0]
            assert (turn.answer, turn.rating, turn.comment) == (answer.text, pb.RATING_UP, "although nobody was at home")
            assert elsewhere.images.get(image_id(images[2])) == images[2]
            (line,) = elsewhere.feedback.lines(new.id)
            assert json.loads(line)["answer"] == answer.text

            for name in ("redis", "s3"):  # one of each replica, however many questions there were
                assert session.warnings(name) == sum(session.metric("ferret_store_losses_total", name)) == 2

            archive = zipfile.ZipFile(io.BytesIO(client.export_conversation(new.id)))
            assert archive.read("image.png") == images[2]
            client.delete_conversation(new.id)
            with pytest.raises(NotFoundError):
                client.get_conversation(new.id)
            with pytest.raises(NotFoundError):
                client.get_image(kept.image_id)
            assert not [path for path in s3.bucket.rglob("*") if new.id in path.name or kept.image_id[7:] in path.name]
            assert client.ask(QUESTION, conversation_id=conversation.id, turn=0) == expected
    finally:
        elsewhere.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert_none_left(tmp_path / "home")
