"""`ferret up`, `ferret down`, `ferret status`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
import yaml

from services.client import FerretClient, ServerError
from services.platform import Platform, deployments, read_state, serve_until_stopped, stop_platform
from services.settings import ModelSettings, PlatformSettings


def up(
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH of a model to serve, or a bundled name; may be repeated.", envvar="FERRET_MODEL"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML of the platform's settings, see docs/platform.md.", exists=True)
    ] = None,
    port: Annotated[int, typer.Option(help="Port of gRPC.", envvar="FERRET_PORT")] = 9000,
    http_port: Annotated[int, typer.Option(help="Port of HTTP.", envvar="FERRET_HTTP_PORT")] = 8000,
    host: Annotated[str, typer.Option(help="Address that HTTP listens on.", envvar="FERRET_HOST")] = "127.0.0.1",
) -> None:
    """Start the platform on this machine and serve until Ctrl-C.

    Example: ferret up --model playground
    """
    started = time.monotonic()
    settings = _settings(config, model or [])

    def log(line: str) -> None:
        typer.echo(f"[{time.monotonic() - started:5.1f} s] {line}", err=True)

    def ready() -> None:
        log(f"ready: gRPC on localhost:{port}, models: {', '.join(settings.models)}")
        typer.echo(f'try:  ferret ask IMAGE "What is [region0]?" --region point:X,Y --server localhost:{port}', err=True)
        typer.echo("stop: Ctrl-C, or `ferret down`", err=True)

    try:
        serve_until_stopped(Platform(settings, host, port, http_port, log), ready)
    except RuntimeError as error:
        typer.echo(f"ferret up: {error}", err=True)
        raise typer.Exit(1) from None


def down() -> None:
    """Stop the platform that `ferret up` started."""
    if not stop_platform():
        typer.echo("no platform is up", err=True)
        raise typer.Exit(1)
    typer.echo("stopped")


def status() -> None:
    """Show whether the platform is up, its models, and its deployments."""
    state = read_state()
    if state is None:
        typer.echo("no platform is up; start one with `ferret up`", err=True)
        raise typer.Exit(1)
    server = f"localhost:{state.grpc_port}"
    typer.echo(f"up for {_duration(time.time() - state.started)}: process {state.pid}, gRPC on {server}")
    try:
        with FerretClient(server, timeout=10) as client:
            typer.echo(f"models: {', '.join(client.models())}")
    except ServerError as error:
        typer.echo(f"not answering: {error}", err=True)
        raise typer.Exit(1) from None
    for name, deployment in deployments(state).items():
        replicas = ", ".join(f"{count} {replica_state}" for replica_state, count in deployment["replicas"].items())
        typer.echo(f"{name:32} {deployment['status']:12} {replicas}")


def _settings(config: Path | None, models: list[str]) -> PlatformSettings:
    values = yaml.safe_load(config.read_text()) or {} if config else {}
    if models:
        named = (entry.partition("=") for entry in models)
        values["models"] = {name: ModelSettings(path=path or name) for name, _, path in named}
    try:
        return PlatformSettings(**values)
    except ValueError as error:
        typer.echo(f"ferret up: {error}", err=True)
        raise typer.Exit(2) from None


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds % 60)} s"
