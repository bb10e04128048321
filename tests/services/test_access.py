"""Who is let in, by the gateway's own methods."""

import asyncio

import grpc
import pytest
from ferret.v1 import ferret_pb2 as pb

from services.access import Access, Limit, TokenFile, create_token, is_loopback
from services.access.admission import SCOPES
from services.access.limits import LocalLimits
from services.calls import CallAbortedError, streaming, unary
from services.errors import ForbiddenError, UnauthenticatedError


class Call:
    """What Serve hands to a method of a gRPC service."""

    def __init__(self, token=None, peer="ipv4:127.0.0.1:5000", tls=False):
        self.metadata = [("user-agent", "test")] + ([("authorization", f"Bearer {token}")] if token else [])
        self.address, self.transport = peer, b"ssl" if tls else b"insecure"
        self.code = self.details = None
        self.trailing = []

    def invocation_metadata(self):
        return self.metadata

    def peer(self):
        return self.address

    def auth_context(self):
        return {"transport_security_type": [self.transport]}

    def set_code(self, code):
        self.code = code

    def set_details(self, details):
        self.details = details

    def set_trailing_metadata(self, metadata):
        self.trailing = metadata


class Service:
    def __init__(self, access):
        self.access, self.go_on, self.running = access, asyncio.Event(), 0

    @unary
    async def RateAnswer(self, request, grpc_context):  # noqa: N802
        return "rated"

    @unary
    async def ListModels(self, request, grpc_context):  # noqa: N802
        return "models"

    @streaming
    async def Chat(self, request, grpc_context):  # noqa: N802
        self.running += 1
        try:
            yield "one"
            await self.go_on.wait()
            yield "two"
        finally:
            self.running -= 1


@pytest.fixture
def tokens(tmp_path):
    return tmp_path / "tokens.yaml"


def make(path, scopes=("ask",), name="web", **limit):
    return create_token(path, name, scopes, Limit(**limit))


def refused(call, awaitable):
    with pytest.raises(CallAbortedError):
        asyncio.run(awaitable)
    return call.code, call.details


def test_every_rpc_has_its_scope():
    """One that is added without a line there is refused, not open."""
    assert SCOPES.keys() == {method.name for method in pb.DESCRIPTOR.services_by_name["FerretService"].methods}


def test_without_tokens_everybody_is_let_in():
    service = Service(Access(None, LocalLimits()))
    assert asyncio.run(service.RateAnswer(None, Call(peer="ipv4:203.0.113.5:1"))) == "rated"


def test_calls_without_a_good_token_are_turned_away(tokens):
    secret = make(tokens)
    service = Service(Access(TokenFile(tokens), LocalLimits()))
    for bad in (None, "ferret_wrong", secret[:-1], secret + "x"):
        call = Call(bad)
        code, details = refused(call, service.ListModels(None, call))
        assert code == grpc.StatusCode.UNAUTHENTICATED
        assert "authorization: " in details
        assert secret[:12] not in details
    call = Call()
    call.metadata.append(("authorization", f"Basic {secret}"))
    assert refused(call, service.ListModels(None, call))[0] == grpc.StatusCode.UNAUTHENTICATED
    assert asyncio.run(service.ListModels(None, Call(secret))) == "models"


def test_a_token_allows_what_it_is_for(tokens):
    asker, rater = make(tokens), make(tokens, ("feedback",), "rater")
    service = Service(Access(TokenFile(tokens), LocalLimits()))
    call = Call(asker)
    code, details = refused(call, service.RateAnswer(None, call))
    assert (code, details) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "authorization: this token does not allow 'feedback'; ask for one that does",
    )
    assert asyncio.run(service.RateAnswer(None, Call(rater))) == "rated"
    call = Call(rater)
    assert refused(call, anext(service.Chat(None, call)))[0] == grpc.StatusCode.PERMISSION_DENIED
    assert service.running == 0


def test_a_client_that_asks_too_often_is_told_when_to_ask_again(tokens):
    secret = make(tokens, rate=6, burst=2)
    service = Service(Access(TokenFile(tokens), LocalLimits()))

    async def check():
        for _ in range(2):
            await service.ListModels(None, Call(secret))
        call = Call(secret)
        with pytest.raises(CallAbortedError):
            await service.ListModels(None, call)
        assert call.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call.details == "this token allows 6 calls a minute; try again in 10 s"
        assert call.trailing == [("retry-after", "10")]

    asyncio.run(check())


def test_a_stream_has_its_place_until_it_ends(tokens):
    """Read to its end, closed, or cancelled."""
    secret = make(tokens, concurrent=1, rate=10_000, burst=100)
    service = Service(Access(TokenFile(tokens), LocalLimits()))

    async def check():
        for end in ("read", "close", "cancel"):
            stream = service.Chat(None, Call(secret))
            assert await anext(stream) == "one"
            call = Call(secret)
            with pytest.raises(CallAbortedError):
                await anext(service.Chat(None, call))
            assert (call.code, call.trailing) == (grpc.StatusCode.RESOURCE_EXHAUSTED, [("retry-after", "1")])
            match end:
                case "read":
                    service.go_on.set()
                    assert [item async for item in stream] == ["two"]
                    service.go_on.clear()
                case "close":
                    await stream.aclose()
                case "cancel":
                    rest = asyncio.ensure_future(anext(stream))
                    await asyncio.sleep(0)
                    rest.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await rest
            assert service.running == 0
            assert await service.ListModels(None, Call(secret)) == "models"

    asyncio.run(check())


def test_a_header_is_as_good_as_metadata(tokens):
    """What HTTP calls."""
    secret = make(tokens)
    access = Access(TokenFile(tokens), LocalLimits())

    async def admit(authorization, scope="ask"):
        async with access.admit(authorization, scope):
            return True

    assert asyncio.run(admit(f"Bearer {secret}"))
    assert asyncio.run(admit(f"bearer  {secret} ", None))
    for header in (None, "", secret, "Bearer", "Bearer ", f"Basic {secret}", "Bearer \udcff"):
        with pytest.raises(UnauthenticatedError):
            asyncio.run(admit(header))
    with pytest.raises(ForbiddenError):
        asyncio.run(admit(f"Bearer {secret}", "delete"))


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:5000", True),
        ("ipv4:127.8.0.1:5000", True),
        ("ipv6:%5B::1%5D:5000", True),
        ("ipv6:[::1]:5000", True),
        ("ipv6:[::ffff:127.0.0.1]:5000", True),
        ("unix:", True),
        ("ipv4:10.0.0.7:5000", False),
        ("ipv4:0.0.0.0:5000", False),
        ("ipv6:%5B2001:db8::1%5D:5000", False),
        ("ipv6:[::ffff:10.0.0.7]:5000", False),
        ("ipv6:[fe80::1%25eth0]:5000", False),
        ("", False),
        ("nonsense", False),
    ],
)
def test_calls_from_other_machines_can_be_refused(peer, local):
    def answers(remote_calls, tls):
        call = Call(peer=peer, tls=tls)
        try:
            return asyncio.run(Service(Access(None, LocalLimits(), remote_calls)).ListModels(None, call)) == "models"
        except CallAbortedError:
            assert call.code == grpc.StatusCode.PERMISSION_DENIED
            return False

    assert answers("any", False)
    assert answers("tls", True)
    assert answers("tls", False) == local
    assert answers("none", False) == answers("none", True) == local


def test_what_is_a_loopback():
    assert [host for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "example.org", "") if is_loopback(host)] == [
        "localhost", "127.0.0.1", "::1",
    ]  # fmt: skip
