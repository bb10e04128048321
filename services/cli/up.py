"""`ferret up`, `ferret demo`, `ferret down`: the platform on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ferret_core.cli.ask import print_spans
from ferret_core.data.playground.demo import DEMO_PICTURE, DEMO_POINT
from ferret_core.geometry import Point
from ferret_core.images import open_image
from ferret_core.overlay import draw_overlay
from services.access import is_loopback
from services.cli.progress import progress
from services.client import connect
from services.listening import TLSPort
from services.platform import check_free, logs, platform, serve_until_stopped, stop_platform
from services.platform_state import http_address
from services.settings import GRPC_PORT, GRPC_TLS_PORT, HTTP_PORT, METRICS_PORT, UI_PORT, PlatformSettings, RemoteCalls

Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A bundled checkpoint, or NAME=PATH; may be repeated.", envvar="FERRET_MODELS"),
]
Config = Annotated[Path | None, typer.Option(help="YAML of the platform's settings, see docs/platform.md.", exists=True)]
Port = Annotated[int, typer.Option(help="Port of gRPC.", envvar="FERRET_PORT")]
HttpPort = Annotated[int, typer.Option(help="Port of HTTP.", envvar="FERRET_HTTP_PORT")]
MetricsPort = Annotated[int, typer.Option(help="Port that Prometheus reads.", envvar="FERRET_METRICS_PORT")]
UIPort = Annotated[int, typer.Option(help="Port of the page.", envvar="FERRET_UI_PORT")]
Host = Annotated[
    str,
    typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.", envvar="FERRET_HOST"),
]
TLSFile = partial(typer.Option, exists=True, dir_okay=False, resolve_path=True)
TLSCert = Annotated[Path | None, TLSFile(help="PEM of a certificate: listen with TLS as well.", envvar="FERRET_TLS_CERT")]
TLSKey = Annotated[Path | None, TLSFile(help="PEM of its key.", envvar="FERRET_TLS_KEY")]
TLSClientCA = Annotated[
    Path | None, TLSFile(help="PEM of an authority: only clients it has certified are let in.", envvar="FERRET_TLS_CLIENT_CA")
]
TLSPortNumber = Annotated[int, typer.Option("--tls-port", help="Port of gRPC with TLS.", envvar="FERRET_TLS_PORT")]


def up(
    models: Models = None,
    config: Config = None,
    port: Port = GRPC_PORT,
    http_port: HttpPort = HTTP_PORT,
    metrics_port: MetricsPort = METRICS_PORT,
    host: Host = "127.0.0.1",
    tls_cert: TLSCert = None,
    tls_key: TLSKey = None,
    tls_client_ca: TLSClientCA = None,
    tls_port: TLSPortNumber = GRPC_TLS_PORT,
) -> None:
    """Start the platform on this machine and serve until Ctrl-C.

    Example: ferret up --model playground --model 7b=/weights/ferret-7b
    """
    if (tls_cert is None) != (tls_key is None) or (tls_client_ca and not tls_cert):
        raise ValueError("--tls-cert and --tls-key go together, and --tls-client-ca with them")
    tls = TLSPort(host=host, port=tls_port, certificate=tls_cert, key=tls_key, client_ca=tls_client_ca) if tls_cert else None
    _serve(_settings(config, models or []), port, http_port, metrics_port, host, tls)


def demo(
    port: Port = GRPC_PORT,
    http_port: HttpPort = HTTP_PORT,
    metrics_port: MetricsPort = METRICS_PORT,
    ui_port: UIPort = UI_PORT,
) -> None:
    """Start the platform, ask a question about a bundled picture, open the page, and keep serving until Ctrl-C."""

    def ask() -> None:
        region, question = Point(*DEMO_POINT), "What is [region0]?"
        typer.echo(f"\npicture:  {DEMO_PICTURE}")
        typer.echo(f"question: {question}  (region0 is the point {region.x:g}, {region.y:g})")
        with connect(f"localhost:{port}", token=os.environ.get("FERRET_TOKEN")) as client:
            client.set_image(DEMO_PICTURE)
            answer = client.ask(question, [region])
        typer.echo(f"answer:   {answer.text}")
        print_spans(answer)
        draw_overlay(open_image(DEMO_PICTURE), answer.spans, {0: region}).save("ferret-demo.png")
        typer.echo("drawn:    ferret-demo.png")
        if find_spec("streamlit"):
            typer.echo(f"page:     {opened.enter_context(_page(f'localhost:{port}', ui_port))}\n")
        else:
            typer.echo("page:     not installed: pip install 'ferret-platform[ui]'\n")

    check_free("--ui-port", ui_port)
    with ExitStack() as opened:
        _serve(_settings(None, []), port, http_port, metrics_port, then=ask)


@contextmanager
def _page(server: str, port: int) -> Iterator[str]:
    """The address of `ferret ui`, in a process of its own: this room knows nothing of that one."""
    command = [sys.executable, "-m", "ferret_core.cli", "ui", "--server", server, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--base-path", ""]
    if sys.stdout.isatty():
        command.append("--open")
    address = f"http://localhost:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                with suppress(OSError):
                    urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
                    break
                time.sleep(0.1)
            else:
                raise RuntimeError(f"the page did not start; see `ferret {' '.join(command[3:])}`")
            yield address
        finally:
            process.terminate()


def _serve(
    settings: PlatformSettings,
    port: int,
    http_port: int,
    metrics_port: int,
    host: str = "127.0.0.1",
    tls: TLSPort | None = None,
    then: Callable[[], None] = lambda: None,
) -> None:
    log = progress()
    if "remote_calls" not in settings.model_fields_set:
        remote: RemoteCalls = "none" if is_loopback(host) else "tls" if tls else "any"
        settings = settings.model_copy(update={"remote_calls": remote})

    def ready() -> None:
        http = http_address(tls.http_options()["host"] if tls else host, http_port, tls is not None)
        log(f"ready: gRPC on localhost:{port}, HTTP on {http}, models: {', '.join(settings.models)}")
        if tls:
            log(f"TLS: gRPC on port {tls.port}")
        if not (is_loopback(host) or settings.tokens_file or (tls and tls.client_ca)):
            log("open to everyone who can reach this machine: see `ferret token create` and docs/security.md")
        log(f"metrics for Prometheus: http://localhost:{metrics_port}/metrics; logs: {logs()}")
        then()
        typer.echo(f'ask:  ferret ask PICTURE "What is [region0]?" --region point:X,Y --server localhost:{port}', err=True)
        typer.echo("stop: Ctrl-C, or ferret down", err=True)

    ports = {"grpc_port": port, "http_port": http_port, "metrics_port": metrics_port}
    serve_until_stopped(platform(settings, host=host, tls=tls, log=log, **ports), ready)


def down() -> None:
    """Stop the platform that `ferret up` started."""
    if not stop_platform():
        typer.echo("no platform is up", err=True)
        raise typer.Exit(1)
    typer.echo("stopped")


def _settings(config: Path | None, models: list[str]) -> PlatformSettings:
    named = (entry.partition("=") for entry in models)
    return PlatformSettings.load(config, models={name: {"path": path or name} for name, _, path in named} or None)
