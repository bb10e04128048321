"""`ferret train`: run or resume a training run."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from ferret_core.training.config import TrainConfig, describe
from ferret_core.training.stop import EXIT_STOPPED, Stopped, StopSignal


def train(
    config: Annotated[Path, typer.Option(help="YAML of the run, see ferret_core/training/configs.", exists=True)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's, see below.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Submit the run to the Ray cluster whose dashboard is at http://HOST:PORT.", envvar="RAY_DASHBOARD_ADDRESS"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan of the run, refuse what cannot fit, and stop.")] = False,
    show: Annotated[bool, typer.Option(help="Print the settings as YAML and stop.")] = False,
    show_deepspeed: Annotated[bool, typer.Option(help="Print DeepSpeed's JSON for these settings and stop.")] = False,
) -> None:
    """Train a model; the same command resumes a run that was stopped.

    Runs on this machine, in as many processes as the setting `workers` says, or with --address on a Ray cluster.

    Example: ferret train --config ferret_core/training/configs/playground.yaml steps=500 output=runs/try
    """
    settings = TrainConfig.load(config, overrides or [])
    if show:
        typer.echo(settings.to_yaml(), nl=False)
    elif show_deepspeed:
        from ferret_core.training.deepspeed_config import deepspeed_config

        typer.echo(json.dumps(deepspeed_config(settings, settings.workers), indent=2))
    elif dry_run:
        from ferret_core.training.plan import make_plan

        typer.echo(make_plan(settings))
    elif address:
        _submit(settings, address)
    elif settings.workers > 1 and "WORLD_SIZE" not in os.environ:
        _launch(config, overrides or [], settings.workers)
    else:
        _run(settings)


def settings_help() -> str:
    """Every setting with its default and its help: the end of `ferret train --help`."""
    lines = [f"{key}{'' if default is None else f' = {_plain(default)}'}: {text}" for key, text, default in describe()]
    return "Settings, in the file or as KEY=VALUE:\n\n" + "\n\n".join(lines)


def _plain(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _run(settings: TrainConfig) -> None:
    """In this process."""
    from ferret_core.training.loop import train  # torch is slow to import

    try:
        with StopSignal() as stop:
            model = train(settings, stop)
    except Stopped as stopped:
        typer.echo(f"ferret train: {stopped}", err=True)
        raise SystemExit(EXIT_STOPPED) from None
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"wrote {model}")


def _launch(config: Path, overrides: list[str], workers: int) -> None:
    """This very command in several processes, which find each other: torchrun takes this one's place."""
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(workers),
        "-m",
        "ferret_core.cli",
        "train",
    ]
    arguments = [sys.executable, *command, "--config", str(config), *overrides]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)


def _submit(settings: TrainConfig, address: str) -> None:
    launchers = entry_points(group="ferret.launchers", name="ray")
    if not launchers:
        raise RuntimeError("--address needs Ray: pip install 'ferret-platform[train]'")
    raise SystemExit(next(iter(launchers)).load()(settings, address))
