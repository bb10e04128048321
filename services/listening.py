"""What is ours in Serve's gRPC proxy: TLS, an ear for clients that leave, and a word for a gateway that went away.

The proxy listens in the clear, on every interface. What it calls to add a service to its server is ours, and adds a port with
TLS as well, where the environment of the node says so (`TLSPort.to_environment`). The port in the clear stays:
`PlatformSettings.remote_calls` says who is answered there.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any, Self

import grpc
from ferret.v1.ferret_pb2_grpc import add_FerretServiceServicer_to_server
from pydantic import FilePath

from services.errors import A_REPLICA_LOST, AN_INCIDENT
from services.leaving import ending_with_client
from services.settings import GRPC_TLS_PORT, Settings

_VARIABLE = "FERRET_TLS_PORT_SETTINGS"


class TLSPort(Settings):
    """Where to listen with TLS, and with which certificate."""

    host: str = "0.0.0.0"
    """Address to listen on."""
    port: int = GRPC_TLS_PORT
    """Of gRPC with TLS."""
    certificate: FilePath
    """PEM of the certificate, the platform's first, then those up to its authority."""
    key: FilePath
    """PEM of its private key."""
    client_ca: FilePath | None = None
    """PEM of the authority that signs clients' certificates; if given, clients without one are not let in, and HTTP, which
    cannot ask for one, listens on this machine alone."""

    @classmethod
    def from_environment(cls) -> Self | None:
        """What the environment says; None if nothing."""
        value = os.environ.get(_VARIABLE)
        return cls.model_validate_json(value) if value else None

    def to_environment(self) -> dict[str, str]:
        """As a variable for `from_environment`, to be set on a node before Ray starts."""
        return {_VARIABLE: self.model_dump_json()}

    def http_options(self) -> dict[str, str]:
        """As arguments of Serve's `HTTPOptions`."""
        # Serve asks no client for a certificate, whatever it is told: where one is wanted, only this machine may come.
        host = "127.0.0.1" if self.client_ca else self.host
        return {"host": host, "ssl_certfile": str(self.certificate), "ssl_keyfile": str(self.key)}

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server."""
        pair = self.key.read_bytes(), self.certificate.read_bytes()
        ca = self.client_ca.read_bytes() if self.client_ca else None
        return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


def add_ferret_service_to_server(servicer: Any, server: Any) -> None:
    """As the generated function, with all that is ours. Raises `RuntimeError` if the port for TLS is taken."""
    make_serves = server.service_handler_factory  # its server replaces every handler by what this makes

    def make_handler(**arguments: Any) -> Callable[[Any, Any], Awaitable[bytes | None]]:
        handler = make_serves(**arguments)
        if inspect.isasyncgenfunction(handler):
            handler = ending_with_client(handler)

        async def handle(request: Any, context: grpc.aio.ServicerContext) -> bytes | None:
            response = await handler(request, context)
            if context.code() == grpc.StatusCode.INTERNAL and not context.details().startswith(AN_INCIDENT):
                context.set_code(grpc.StatusCode.UNAVAILABLE)  # Serve's word for it, not the gateway's: that went away
                context.set_details(A_REPLICA_LOST)
            return response

        return handle

    server.service_handler_factory = make_handler
    add_FerretServiceServicer_to_server(servicer, server)
    if tls := TLSPort.from_environment():
        server.add_secure_port(f"{tls.host}:{tls.port}", tls.credentials())
