"""`ferret ui`."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from services.settings import UI_PORT
from ui.examples import load_examples
from ui.settings import UISettings

Server = Annotated[str | None, typer.Option(help="HOST:PORT of the platform's gRPC.", envvar="FERRET_SERVER")]
Config = Annotated[
    Path | None, typer.Option(help="YAML of the page's settings, see docs/page.md.", exists=True, envvar="FERRET_UI_CONFIG")
]
TLS = Annotated[bool | None, typer.Option(help="Whether the platform is behind TLS.", envvar="FERRET_TLS")]
Host = Annotated[str, typer.Option(help="Address that the page listens on.", envvar="FERRET_UI_HOST")]
Port = Annotated[int, typer.Option(help="Port of the page.", envvar="FERRET_UI_PORT")]
BasePath = Annotated[str, typer.Option(help="Path prefix, behind a proxy that keeps it.", envvar="FERRET_UI_BASE_PATH")]
Open = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")]


def ui(
    server: Server = None,
    config: Config = None,
    tls: TLS = None,
    host: Host = "127.0.0.1",
    port: Port = UI_PORT,
    base_path: BasePath = "",
    open_browser: Open = False,
) -> None:
    """Start the page: draw on a picture, ask, and see grounded boxes.

    Needs a running platform (ferret up). A platform that asks for a token finds it in $FERRET_TOKEN.

    Example: ferret ui --server localhost:9000 --port 8501
    """
    if not find_spec("streamlit"):
        raise RuntimeError("`ferret ui` needs streamlit: pip install 'ferret-platform[ui]'")
    settings = UISettings.load(config, server=server, tls=tls)
    load_examples(settings)  # so that what is wrong with them is said here
    base_path = base_path.strip("/")
    options = {
        "server.address": host,
        "server.port": port,
        "server.baseUrlPath": base_path,
        "server.headless": not open_browser,
        "server.showEmailPrompt": False,
        "server.fileWatcherType": "none",
        "server.maxUploadSize": -(-settings.max_image_bytes // 2**20),
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.light.primaryColor": "#0f766e",
        "theme.dark.primaryColor": "#14a396",
    }
    script = Path(__file__).parent / "app.py"
    command = [sys.executable, "-m", "streamlit", "run", str(script), *(f"--{name}={value}" for name, value in options.items())]
    typer.echo(f"page: http://{host}:{port}/{base_path}", err=True)
    os.execve(sys.executable, command, os.environ | settings.to_environment())
