"""Fetching pictures, from a real HTTPS server."""

import asyncio
import http.server
import socket
import ssl
import threading
import time

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb
from ferret.v1.ferret_pb2_grpc import add_FerretServiceServicer_to_server

from ferret_core.data.playground import playground_example
from ferret_core.geometry import ImageSize
from ferret_core.images import ImageError, image_bytes, image_id
from services import fetching
from services.client import AsyncFerretClient, FerretClient, InvalidRequestError
from services.fetching import fetch_image, is_public
from tests.certificates import make_certificates
from tests.scripted_platform import Platform

PICTURE = b"a picture " * 1000
SCENE = image_bytes(playground_example("test", 0).image)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        match self.path:
            case "/picture.png?size=1":
                self.answer(200, PICTURE)
            case "/scene.png":
                self.answer(200, SCENE)
            case "/moved":
                self.answer(302, b"", Location=self.server.address + "/picture.png?size=1")
            case "/large":
                self.answer(200, PICTURE * 20)
            case "/endless":
                self.answer(200)
                self.write(PICTURE, 0)
            case "/slow":
                self.answer(200)
                self.write(b"x", 0.2)
            case "/slow-headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                self.write(b"X", 0.2)
            case "/squeezed":
                self.answer(200, b"\x1f\x8b not unpacked", **{"Content-Encoding": "gzip"})
            case "/cookie":
                self.answer(200, self.headers.get("Cookie", "none").encode(), **{"Set-Cookie": "a=b"})
            case _:
                self.answer(404)

    def answer(self, status, body=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body or b"")

    def write(self, data, pause):
        while not self.server.ended:
            self.wfile.write(data)
            time.sleep(pause)

    def log_message(self, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    ended = False

    def handle_error(self, *arguments):
        """Clients may hang up."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    files = make_certificates(tmp_path_factory.mktemp("tls"))
    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server, files.server_key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.host, server.ca = f"localhost:{server.server_port}", files.ca
    server.address, server.asked = f"https://{server.host}", []
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(files.ca))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.ended = True
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def public(monkeypatch):
    """As if this machine were elsewhere."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address in ("127.0.0.1", "::1"))


def fetch(server, path, hosts=None, **options):
    url = path if "://" in path else server.address + path
    options = {"max_bytes": 100_000, "seconds": 20} | options
    return asyncio.run(fetch_image(url, [server.host] if hosts is None else hosts, **options))


def test_a_picture_is_fetched(server, public):
    assert fetch(server, "/picture.png?size=1") == PICTURE
    assert fetch(server, "/squeezed").startswith(b"\x1f\x8b")
    assert [fetch(server, "/cookie") for _ in range(2)] == [b"none"] * 2


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost/x", "https://HOST"),
        ("file:///etc/passwd", "https://HOST"),
        ("ftp://localhost/x", "https://HOST"),
        ("https:///x", "https://HOST"),
        ("https://localhost:port/x", "https://HOST"),
        ("https://[::1/x", "https://HOST"),
        ("https://user:password@localhost/x", "https://HOST"),  # pragma: allowlist secret
        ("https://localhost/x", "only from"),
        ("https://example.org/x", "only from"),
        ("https://sub.localhost/x", "only from"),
        ("https://localhost.example.org/x", "only from"),
        ("https://localhost\\@example.org/x", "image_url: "),
        ("https://127.0.0.1/x", "only from"),
        ("https://169.254.169.254/latest/meta-data/", "only from"),
        ("https://2130706433/x", "only from"),
    ],
)
def test_other_addresses_are_refused(server, public, url, says):
    before = len(server.asked)
    with pytest.raises(ImageError, match=says):
        fetch(server, url)
    with pytest.raises(ImageError):
        fetch(server, url, hosts=[])
    assert len(server.asked) == before


def test_nothing_is_fetched_by_default(server, public):
    with pytest.raises(ImageError, match="this platform fetches no pictures"):
        fetch(server, "/picture.png", hosts=[])


def test_an_allowed_name_of_a_private_address_is_refused(server):
    before = len(server.asked)
    with pytest.raises(ImageError, match="could not be fetched"):
        fetch(server, "/picture.png?size=1")
    assert len(server.asked) == before
    for host in ("127.0.0.1", "10.0.0.1", "8.8.8.8"):  # no name is looked up for an address: it must not slip past
        with pytest.raises(ImageError, match="fetched only from"):
            fetch(server, f"https://{host}/x", hosts=[host])


def test_a_name_is_looked_up_once_and_all_it_stands_for_counts(server, monkeypatch):
    """A name of one's own may stand for something public when it is checked, and for something else a moment later."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    asked, real = [], socket.getaddrinfo
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    def look_up(host, port, *arguments, **options):
        asked.append(host)
        return [entry for address in answers[0] for entry in real(address, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert fetch(server, "/picture.png?size=1") == PICTURE
    assert asked == ["localhost"]
    answers[0] = ["127.0.0.1", "127.0.0.2"]
    with pytest.raises(ImageError, match="could not be fetched"):
        fetch(server, "/picture.png?size=1")


def test_a_server_cannot_lead_elsewhere_nor_take_over(server, public):
    for path, says in (
        ("/moved", "answered with 302; redirects are not followed"),
        ("/none", "answered with 404"),
        ("/large", "more than 100,000 bytes"),
        ("/endless", "more than 100,000 bytes"),
    ):
        with pytest.raises(ImageError, match=says):
            fetch(server, path)
    for path in ("/slow", "/slow-headers"):
        started = time.monotonic()
        with pytest.raises(ImageError, match="took longer than 1 s"):
            fetch(server, path, seconds=1)
        assert time.monotonic() - started < 5


def test_pictures_are_checked_while_hosts_are_waited_for(server, public, tmp_path):
    platform = Platform(tmp_path, allowed_image_hosts=(server.host,))

    def upload(**image):
        return platform.gateway.UploadImage(pb.UploadImageRequest(**image), platform.context)

    async def check():
        before, slow = len(server.asked), 40
        waiting = [asyncio.ensure_future(upload(image_url=f"{server.address}/slow")) for _ in range(slow)]
        try:
            async with asyncio.timeout(60):
                while len(server.asked) < before + slow:
                    await asyncio.sleep(0.05)
                uploaded = await upload(image_bytes=SCENE)
            assert uploaded.image.id == image_id(SCENE)
            assert not any(each.done() for each in waiting)
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(check())


def test_names_that_are_not_found_hold_up_nobody_else(server, monkeypatch):
    found = threading.Event()

    def look_up(*arguments, **options):
        found.wait()
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def check():
        fetching = [
            asyncio.ensure_future(fetch_image(f"{server.address}/scene.png", [server.host], 1, seconds=60)) for _ in range(40)
        ]
        try:
            await asyncio.sleep(1)
            assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), 20) == "done"
            assert not any(each.done() for each in fetching)
        finally:
            found.set()
            ends = await asyncio.gather(*fetching, return_exceptions=True)
        assert {type(end) for end in ends} == {ImageError}

    asyncio.run(check())


def test_clients_may_have_the_platform_fetch_their_picture(server, public, tmp_path):
    platform = Platform(tmp_path, allowed_image_hosts=(server.host,))
    url, size = f"{server.address}/scene.png", ImageSize(*playground_example("test", 0).image.size)

    def ask(address):
        with FerretClient(address) as client:
            assert client.set_image_url(url) == size
            with pytest.raises(InvalidRequestError, match=r"image_url: .* answered with 404"):
                client.set_image_url(f"{server.address}/none")
            with pytest.raises(RuntimeError, match="call set_image"):  # the failure left no picture
                client.ask("Why?")

    async def check():
        grpc_server = grpc.aio.server()
        add_FerretServiceServicer_to_server(platform.gateway, grpc_server)
        address = f"127.0.0.1:{grpc_server.add_insecure_port('127.0.0.1:0')}"
        await grpc_server.start()
        try:
            async with AsyncFerretClient(address) as client:
                assert await client.set_image_url(url) == size
                platform.decoder.say("So", "stop")
                assert (await client.ask("Why?")).text == "So"
                assert (await client.create_conversation()).image_id == image_id(SCENE)
            await asyncio.to_thread(ask, address)
        finally:
            await grpc_server.stop(None)

    asyncio.run(check())


def test_a_server_must_be_who_it_says(server, public, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(make_certificates(tmp_path).ca))
    before = len(server.asked)
    with pytest.raises(ImageError, match="could not be fetched"):
        fetch(server, "/picture.png?size=1")
    assert len(server.asked) == before


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.215.14", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::a00:1", False),
    ],
)
def test_public_addresses(address, public):
    assert is_public(address) == public
