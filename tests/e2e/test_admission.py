"""A platform that is open to other machines, and says who may come in: `ferret up --host 0.0.0.0` with tokens and TLS."""

import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import urllib.request

import grpc
import psutil
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceStub

from ferret_core.data.playground import playground_example
from services.access import Limit, create_token, revoke_token
from services.client import FerretClient, ServerError, tls_credentials
from tests.certificates import make_certificates
from tests.processes import FERRET, assert_none_left, free_port, processes_of, start_platform
from tests.redis_server import redis_server

pytestmark = pytest.mark.platform

GENEROUS = Limit(rate=100_000, burst=1000, concurrent=100)
CODE = grpc.StatusCode


class Guarded:
    """Where it is, and what opens it."""

    def __init__(self, home):
        self.home, self.tokens, self.tls = home, home / "tokens.yaml", make_certificates(home)
        self.tls_port, self.http_port = free_port(), free_port()
        self.token = self.create("web", "ask", "feedback")

    def create(self, name, *scopes, limit=GENEROUS):
        return create_token(self.tokens, name, scopes, limit)

    def start(self):
        arguments = ["--host", "0.0.0.0", "--tls-port", str(self.tls_port), "--http-port", str(self.http_port)]
        files = ["--tls-cert", self.tls.server, "--tls-key", self.tls.server_key, "--tls-client-ca", self.tls.client_ca]
        self.process, self.plain, self.environment = start_platform(self.home, *arguments, *map(str, files))

    def client(self, token=None, **options):
        """In the clear, as on the same machine."""
        return FerretClient(self.plain, token=token, **options)

    def tls_client(self, token=None, host="localhost", **options):
        credentials = tls_credentials(self.tls.ca, self.tls.client, self.tls.client_key)
        return FerretClient(f"{host}:{self.tls_port}", token=token, credentials=credentials, **options)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as redis, pytest.MonkeyPatch.context() as environment:
        guarded = Guarded(tmp_path_factory.mktemp("home"))
        environment.setenv("FERRET_TOKENS_FILE", str(guarded.tokens))
        environment.setenv("FERRET_REDIS_URL", redis.url)
        guarded.redis = redis
        guarded.start()
        yield guarded
        guarded.process.send_signal(signal.SIGINT)
        assert guarded.process.wait(120) == 0
        assert_none_left(guarded.home)


def refused(call, *arguments):
    with pytest.raises(ServerError) as caught:
        call(*arguments)
    return caught.value


def other_address():
    """One by which this machine is known to others."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                return address.address
    return pytest.skip("this machine is alone: it has no address but its own")


def test_tls_in_the_platforms_own_process(guarded):
    picture = playground_example("test", 0).image
    with guarded.tls_client(guarded.token) as client, guarded.client(guarded.token) as local:
        client.set_image(picture)
        answer = client.ask("Describe the image.")
        local.set_image(picture)
        assert answer == local.ask("Describe the image.")
        assert answer.text
    with guarded.tls_client() as client:  # a certificate is not a token
        assert refused(client.models).code == CODE.UNAUTHENTICATED
    unknown = tls_credentials(guarded.tls.ca)
    with FerretClient(f"localhost:{guarded.tls_port}", token=guarded.token, credentials=unknown, timeout=20) as client:
        refused(client.models)


def test_other_machines_come_in_over_tls_alone(guarded):
    address = other_address()
    port = guarded.plain.rpartition(":")[2]
    with FerretClient(f"{address}:{port}", token=guarded.token, timeout=20) as client:
        error = refused(client.models)
    assert error.code == CODE.PERMISSION_DENIED
    assert "only over TLS" in str(error)
    with grpc.secure_channel(
        f"{address}:{guarded.tls_port}",
        tls_credentials(guarded.tls.ca, guarded.tls.client, guarded.tls.client_key),
        [("grpc.ssl_target_name_override", "localhost")],  # the name in its certificate
    ) as channel:
        metadata = [("authorization", f"Bearer {guarded.token}")]
        assert FerretServiceStub(channel).ListModels(pb.ListModelsRequest(), metadata=metadata).models[0].name == "playground"


def test_http_is_https_and_stays_here(guarded):
    """It cannot ask for a client's certificate."""
    context = ssl.create_default_context(cafile=guarded.tls.ca)
    address = f"https://localhost:{guarded.http_port}/-/routes"
    with urllib.request.urlopen(address, context=context, timeout=20) as response:
        assert response.status == 200
    with pytest.raises(OSError):  # noqa: PT011
        urllib.request.urlopen(address.replace("https", "http"), timeout=20).read()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((other_address(), guarded.http_port), timeout=20)


def test_http_asks_for_a_token_before_it_waits_for_the_rest(guarded):
    context = ssl.create_default_context(cafile=guarded.tls.ca)
    headers = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with (
        socket.create_connection(("localhost", guarded.http_port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(headers + b"Content-Length: 20000000\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_tokens_decide(guarded):
    for token in (None, "ferret_wrong", guarded.token[:-1]):
        with guarded.client(token) as client:
            error = refused(client.models)
            assert error.code == CODE.UNAUTHENTICATED
            assert "FERRET_TOKEN" in str(error)
            assert guarded.token[7:] not in str(error)
    rater = guarded.create("rater", "feedback")  # of the running platform
    with guarded.client(rater) as client:
        assert client.models() == ["playground"]
        client._image_id = "sha256:" + "0" * 64
        for call in (client.ask, client.get_image):
            error = refused(call, "x")
            assert error.code == CODE.PERMISSION_DENIED
            assert "does not allow 'ask'" in str(error)
        revoke_token(guarded.tokens, "rater")
        assert refused(client.models).code == CODE.UNAUTHENTICATED


def test_limits_hold_and_say_when_to_ask_again(guarded):
    hasty = guarded.create("hasty", "ask", limit=Limit(rate=2, burst=3, concurrent=9))
    with guarded.client(hasty) as client:
        for _ in range(3):
            client.models()
        error = refused(client.models)
    assert error.code == CODE.RESOURCE_EXHAUSTED
    assert "2 calls a minute; try again in" in str(error)
    assert 1 <= error.retry_after <= 30


def test_a_stream_has_its_place_until_its_client_goes(guarded):
    """Counted in Redis; and in the replica, when Redis is gone."""
    single = guarded.create("single", "ask", limit=Limit(rate=100_000, burst=1000, concurrent=1))
    picture = playground_example("test", 0).image

    def one_at_a_time():
        with guarded.client(single) as client:
            client.set_image(picture)
            stream = client.stream("Describe the image.", temperature=5.0, max_new_tokens=1500)
            next(stream)
            error = refused(client.models)
            assert error.code == CODE.RESOURCE_EXHAUSTED
            assert "1 calls at a time" in str(error)
            assert error.retry_after == 1
            stream.close()
            for _ in range(100):
                try:
                    return client.models()
                except ServerError:
                    threading.Event().wait(0.2)
            raise AssertionError("the place was not given back")

    one_at_a_time()
    guarded.redis.stop()
    one_at_a_time()
    guarded.redis.start()


def test_the_command_line_has_a_token(guarded, tmp_path):
    picture = tmp_path / "scene.png"
    playground_example("test", 0).image.save(picture)
    ask = [*FERRET, "ask", str(picture), "Describe the image.", "--json", "--server", guarded.plain]
    with_token = guarded.environment | {"FERRET_TOKEN": guarded.token}
    done = subprocess.run(ask, env=with_token, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"]
    without = subprocess.run(ask, env=guarded.environment, capture_output=True, text=True)
    assert without.returncode == 1
    assert "authorization: send `Bearer TOKEN`" in without.stderr
    assert "Traceback" not in without.stderr
    status = subprocess.run([*FERRET, "status"], env=with_token, capture_output=True, text=True).stdout
    assert "models: playground" in status
    assert f"HTTP on https://localhost:{guarded.http_port}/v1\n" in status


def test_the_command_line_has_a_certificate(guarded, tmp_path):
    picture = tmp_path / "scene.png"
    playground_example("test", 0).image.save(picture)
    files = {"--tls-ca": guarded.tls.ca, "--tls-cert": guarded.tls.client, "--tls-key": guarded.tls.client_key}
    flags = ["--server", f"localhost:{guarded.tls_port}", "--max-new-tokens", "4"]
    load = ["--users", "1", "--seconds", "1", "--warmup", "0", "--image", str(picture)]
    for command in (["ask", str(picture), "Describe the image."], ["bench", *load]):
        for given in (files, {"--tls-ca": guarded.tls.ca}):
            arguments = [str(part) for pair in given.items() for part in pair]
            environment = guarded.environment | {"FERRET_TOKEN": guarded.token}
            done = subprocess.run([*FERRET, *command, *flags, *arguments], env=environment, capture_output=True, text=True)
            assert (done.returncode == 0) == (given == files), done.stderr
            assert "Traceback" not in done.stderr


def test_what_ray_listens_on_wants_rays_token(guarded):
    """The deployments' own servers unpickle what they are sent: who could call them could run anything."""
    ports = set()
    for process in processes_of(guarded.home):
        if "replica" in process.name().lower() or "replica" in " ".join(process.cmdline()).lower():
            ports |= {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    codes = {}
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=20)
            codes[port] = caught.value.code()
    assert len([code for code in codes.values() if code == CODE.UNAUTHENTICATED]) >= 4, codes
    assert set(codes.values()) <= {CODE.UNAUTHENTICATED, CODE.UNIMPLEMENTED, CODE.UNAVAILABLE}, codes


def test_flags_that_do_not_go_together_are_refused(tmp_path):
    files = make_certificates(tmp_path)
    for arguments in (["--tls-cert", files.server], ["--tls-client-ca", files.client_ca]):
        done = subprocess.run([*FERRET, "up", *map(str, arguments)], env=os.environ, capture_output=True, text=True)
        assert done.returncode == 1
        assert "--tls-cert and --tls-key go together" in done.stderr
