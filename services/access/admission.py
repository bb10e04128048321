"""Who may call what, and how often. Everything that comes in passes here, gRPC and HTTP alike."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any
from urllib.parse import unquote

from services.access.limits import Limits
from services.access.tokens import Scope, TokenFile
from services.errors import ForbiddenError, UnauthenticatedError
from services.settings import RemoteCalls

SCOPES: dict[str, Scope | None] = {
    "Chat": "ask",
    "UploadImage": "ask",
    "GetImage": "ask",
    "ListModels": None,
    "CreateConversation": "ask",
    "GetConversation": "ask",
    "RateAnswer": "feedback",
    "ExportConversation": "ask",
    "DeleteConversation": "delete",
}
"""What a token must allow, by RPC; with None any token will do."""


class Access:
    """Lets calls in. Without tokens everybody may do everything."""

    def __init__(self, tokens: TokenFile | None, limits: Limits, remote_calls: RemoteCalls = "any") -> None:
        self.tokens, self.limits, self.remote_calls = tokens, limits, remote_calls

    def admit_call(self, rpc: str, context: Any) -> AbstractAsyncContextManager[None]:
        """As `admit`, for the RPC of a gRPC context. Raises also `ForbiddenError` for calls from elsewhere."""
        if not (self.remote_calls == "any" or _is_local(context.peer()) or (self.remote_calls == "tls" and _is_tls(context))):
            raise ForbiddenError(
                "this port answers other machines only over TLS; use the port of `ferret up --tls-port`"
                if self.remote_calls == "tls"
                else "this platform answers its own machine only; start it with `ferret up --host 0.0.0.0` to open it"
            )
        return self.admit(dict(context.invocation_metadata()).get("authorization"), SCOPES[rpc])

    @asynccontextmanager
    async def admit(self, authorization: str | None, scope: Scope | None) -> AsyncIterator[None]:
        """A call's place among those of its token, until the end of the block.

        Args:
            authorization: as of the header: `Bearer TOKEN`.
            scope: what the token must allow, if anything.

        Raises:
            UnauthenticatedError: no token, or one that nobody knows.
            ForbiddenError: the token does not allow this.
            LimitError: the token's limits are reached.
        """
        if self.tokens is None:
            yield
            return
        kind, _, secret = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not secret:
            raise UnauthenticatedError("authorization: send `Bearer TOKEN`, with a token from whoever runs the platform")
        token = self.tokens.find(secret.strip())
        if token is None:
            raise UnauthenticatedError("authorization: this token is not, or no longer, known; ask for another")
        if scope and scope not in token.scopes:
            raise ForbiddenError(f"authorization: this token does not allow {scope!r}; ask for one that does")
        async with self.limits.hold(token.name, token):
            yield


def is_loopback(host: str) -> bool:
    """Whether only this machine can be at, or be reached by, an address or name."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    return host == "localhost"


def _is_local(peer: str) -> bool:
    """Whether a gRPC peer, such as `ipv4:127.0.0.1:5000` or `ipv6:%5B::1%5D:5000`, is this machine."""
    kind, _, address = unquote(peer).partition(":")
    return kind == "unix" or is_loopback(address.rpartition(":")[0].strip("[]"))


def _is_tls(context: Any) -> bool:
    return b"ssl" in context.auth_context().get("transport_security_type", ())
