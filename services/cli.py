"""`ferret up`, `ferret demo`, `ferret down`, `ferret status`."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ferret_core.cli.ask import print_spans
from ferret_core.data.playground.demo import DEMO_PICTURE, DEMO_POINT
from ferret_core.geometry import Point
from ferret_core.images import open_image
from ferret_core.overlay import draw_overlay
from services.client import FerretClient, ServerError
from services.platform import check_free, deployments, platform, read_state, serve_until_stopped, stop_platform
from services.settings import GRPC_PORT, HTTP_PORT, UI_PORT, PlatformSettings

Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A bundled checkpoint, or NAME=PATH; may be repeated.", envvar="FERRET_MODELS"),
]
Config = Annotated[Path | None, typer.Option(help="YAML of the platform's settings, see docs/platform.md.", exists=True)]
Port = Annotated[int, typer.Option(help="Port of gRPC; it listens on every interface.", envvar="FERRET_PORT")]
HttpPort = Annotated[int, typer.Option(help="Port of HTTP.", envvar="FERRET_HTTP_PORT")]
UIPort = Annotated[int, typer.Option(help="Port of the page.", envvar="FERRET_UI_PORT")]
Host = Annotated[str, typer.Option(help="Address that HTTP listens on.", envvar="FERRET_HOST")]


def up(
    models: Models = None,
    config: Config = None,
    port: Port = GRPC_PORT,
    http_port: HttpPort = HTTP_PORT,
    host: Host = "127.0.0.1",
) -> None:
    """Start the platform on this machine and serve until Ctrl-C.

    Example: ferret up --model playground --model 7b=/weights/ferret-7b
    """
    _serve(models, config, port, http_port, host)


def demo(port: Port = GRPC_PORT, http_port: HttpPort = HTTP_PORT, ui_port: UIPort = UI_PORT) -> None:
    """Start the platform, ask a question about a bundled picture, open the page, and keep serving until Ctrl-C."""

    def ask() -> None:
        region, question = Point(*DEMO_POINT), "What is [region0]?"
        typer.echo(f"\npicture:  {DEMO_PICTURE}")
        typer.echo(f"question: {question}  (region0 is the point {region.x:g}, {region.y:g})")
        with FerretClient(f"localhost:{port}") as client:
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
        _serve(None, None, port, http_port, "127.0.0.1", ask)


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
    models: list[str] | None,
    config: Path | None,
    port: int,
    http_port: int,
    host: str,
    then: Callable[[], None] = lambda: None,
) -> None:
    started = time.monotonic()
    settings = _settings(config, models or [])

    def log(line: str) -> None:
        typer.echo(f"[{time.monotonic() - started:5.1f} s] {line}", err=True)

    def ready() -> None:
        log(f"ready: gRPC on localhost:{port}, models: {', '.join(settings.models)}")
        then()
        typer.echo(f'ask:  ferret ask PICTURE "What is [region0]?" --region point:X,Y --server localhost:{port}', err=True)
        typer.echo("stop: Ctrl-C, or ferret down", err=True)

    serve_until_stopped(platform(settings, host=host, grpc_port=port, http_port=http_port, log=log), ready)


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
    named = (entry.partition("=") for entry in models)
    return PlatformSettings.load(config, models={name: {"path": path or name} for name, _, path in named} or None)


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds % 60)} s"
