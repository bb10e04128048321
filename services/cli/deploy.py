"""`ferret deploy`: the platform on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.progress import progress
from services.deploy import DEFAULT_CLUSTER, is_open, load_serve_config
from services.deploy import deploy as deploy_config


def deploy(
    file: Annotated[Path, typer.Option("--file", "-f", help="Serve config, such as those in cluster/serve.", exists=True)],
    address: Annotated[
        str, typer.Option(help="The cluster's dashboard, http://HOST:8265.", envvar="RAY_DASHBOARD_ADDRESS")
    ] = DEFAULT_CLUSTER,
    timeout: Annotated[float, typer.Option(help="Seconds until it must run.", min=1)] = 1200,
) -> None:
    """Put the platform on a running Ray cluster, or change it there, and wait until it runs.

    What is deployed already serves on until what replaces it is ready, and if that fails. Ctrl-C ends the waiting alone. For a
    cluster that asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.

    Example: ferret deploy -f cluster/serve/cpu.yaml --address http://head:8265
    """
    config, log = load_serve_config(file), progress()
    deploy_config(config, address, timeout, log)
    if is_open(config):
        log(
            "open to everyone who can reach the cluster, unless FERRET_TOKENS_FILE is set there: see `ferret token create` and "
            "docs/security.md"
        )
    log(f"running on {address}")
