"""TLS in front of the platform: a real nginx, with the configuration that docs/security.md prints."""

import asyncio
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import FerretServiceStub

from ferret_core.answer import TextDelta
from ferret_core.data.playground import playground_example
from services.client import AsyncFerretClient, FerretClient, ServerError, tls_credentials
from tests.certificates import make_certificates
from tests.processes import FERRET, free_port

pytestmark = pytest.mark.platform

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def nginx(platform, certificates, tmp_path_factory):
    """Its address."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    assert Path(program).exists(), "nginx is missing: apt-get install nginx-light"
    directory, port = tmp_path_factory.mktemp("nginx"), free_port()
    (server,) = re.findall(r"```nginx\n(.*?)```", DOCUMENT.read_text(), re.S)
    for printed, here in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/etc/ferret/tls", str(certificates.ca.parent)),
        ("127.0.0.1:9000", platform.server),
    ):
        assert printed in server
        server = server.replace(printed, here)
    paths = "".join(f"{name}_temp_path {directory}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log stderr; events {{}} http {{ access_log off; {paths} {server} }}"
    )
    command = [program, "-p", str(directory), "-e", "stderr", "-c", str(directory / "nginx.conf")]
    with subprocess.Popen(command, stderr=(directory / "log").open("w")) as process:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        assert process.poll() is None, (directory / "log").read_text()
        yield f"localhost:{port}"
        process.terminate()


@pytest.fixture
def credentials(certificates):
    return tls_credentials(certificates.ca, certificates.client, certificates.client_key)


def test_the_client_speaks_tls_and_shows_its_certificate(nginx, credentials, client):
    picture = playground_example("test", 0).image
    client.set_image(picture)
    expected = client.ask("Describe the image.")
    with FerretClient(nginx, credentials=credentials) as behind:
        assert behind.models() == ["playground"]
        behind.set_image(picture)
        events = list(behind.stream("Describe the image."))
        assert sum(isinstance(event, TextDelta) for event in events) > 5
        assert behind.ask("Describe the image.") == expected
        with pytest.raises(ValueError, match="question: must not be empty"):  # errors come through whole
            behind.ask("")

    async def models():
        async with AsyncFerretClient(nginx, credentials=credentials) as behind:
            return await behind.models()

    assert asyncio.run(models()) == ["playground"]


def test_a_large_picture_passes_and_the_platforms_limit_is_what_refuses(nginx, credentials):
    with grpc.secure_channel(nginx, credentials, [("grpc.max_send_message_length", -1)]) as channel:
        stub = FerretServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.UploadImage(pb.UploadImageRequest(image_bytes=b"x" * (21 * 2**20)), timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 20,971,520" in caught.value.details()


def test_strangers_do_not_come_in(nginx, certificates, tmp_path):
    """Without a certificate, with one of another authority, without TLS; nor does a client trust a server it does not know."""
    other = make_certificates(tmp_path)
    for credentials in (
        tls_credentials(certificates.ca),
        tls_credentials(certificates.ca, other.client, other.client_key),
        tls_credentials(other.ca, certificates.client, certificates.client_key),
        tls_credentials(None, certificates.client, certificates.client_key),
        None,
    ):
        with FerretClient(nginx, credentials=credentials, timeout=20) as client, pytest.raises(ServerError):
            client.models()


def test_only_the_service_is_behind_it(nginx, credentials):
    """Ray Serve's own services, which ask for no token, are not."""
    with grpc.secure_channel(nginx, credentials) as channel:
        call = channel.unary_unary("/ray.serve.RayServeAPIService/ListApplications")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_command_line_speaks_tls(nginx, certificates, tmp_path):
    picture = tmp_path / "scene.png"
    playground_example("test", 0).image.save(picture)
    ask = [*FERRET, "ask", str(picture), "Describe the image.", "--server", nginx]
    files = ["--tls-ca", certificates.ca, "--tls-cert", certificates.client, "--tls-key", certificates.client_key]
    done = subprocess.run([*ask, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    half = subprocess.run([*ask, *files[:4]], capture_output=True, text=True)
    assert half.returncode == 1
    assert "--tls-cert and --tls-key" in half.stderr
