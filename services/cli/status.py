"""`ferret status`: what runs on this machine."""

from __future__ import annotations

import os
import time

import typer

from services.client import ServerError, connect
from services.platform_state import http_address, read_state
from services.status import deployments, essentials


def status() -> None:
    """Show whether the platform is up, its models, its deployments, and what they have done."""
    state = read_state()
    if state is None:
        typer.echo("no platform is up; start one with `ferret up`", err=True)
        raise typer.Exit(1)
    server = f"localhost:{state.grpc_port}"
    typer.echo(
        f"up for {_duration(time.time() - state.started)}: process {state.pid}, gRPC on {server}, "
        f"HTTP on {http_address('localhost', state.http_port, state.tls)}"
    )
    try:
        with connect(server, token=os.environ.get("FERRET_TOKEN"), timeout=10) as client:
            typer.echo(f"models: {', '.join(client.models())}")
    except ServerError as error:
        typer.echo(f"not answering: {error}", err=True)
        raise typer.Exit(1) from None
    for name, deployment in deployments(state).items():
        replicas = ", ".join(f"{count} {replica_state}" for replica_state, count in deployment["replicas"].items())
        typer.echo(f"{name:32} {deployment['status']:12} {replicas}")
    for name, value in essentials(state.metrics_port).items():
        typer.echo(f"{name:34} {value:g}")


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds % 60)} s"
