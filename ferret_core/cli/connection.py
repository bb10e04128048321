"""Talking to a running platform: the flags of the commands that do, and the client."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Option(help="A bundled checkpoint, a directory, or with --server a served model's name.", envvar="FERRET_MODEL"),
]
Server = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of a running platform, instead of loading the model here.", envvar="FERRET_SERVER"),
]
Token = Annotated[str, typer.Option(help="That the platform asks for.", envvar="FERRET_TOKEN", show_envvar=True)]
TLS = Annotated[bool, typer.Option("--tls", help="Speak TLS with the platform.", envvar="FERRET_TLS")]
TLSCa = Annotated[Path | None, typer.Option("--tls-ca", help="PEM of the authority to trust.", envvar="FERRET_TLS_CA")]
TLSCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", help="PEM of your certificate, if the platform asks for one.", envvar="FERRET_TLS_CLIENT_CERT"),
]
TLSKey = Annotated[Path | None, typer.Option("--tls-key", help="PEM of its key.", envvar="FERRET_TLS_CLIENT_KEY")]


def connect(server: str, model: str, **described: Any) -> Any:
    """A client of a running platform, which is asked as a `FerretPredictor` is. Raises `RuntimeError` if none is installed."""
    clients = entry_points(group="ferret.clients", name="grpc")
    if not clients:
        raise RuntimeError("--server needs the client: pip install 'ferret-platform[serve]'")
    return next(iter(clients)).load()(server, model, **described)
