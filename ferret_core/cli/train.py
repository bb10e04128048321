"""`ferret train`: run or resume a training run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Option(help="YAML of the run, see ferret_core/training/configs.", exists=True)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's.")
    ] = None,
    show: Annotated[bool, typer.Option(help="Print the settings and stop.")] = False,
) -> None:
    """Train a model on this machine; the same command resumes a run that was stopped.

    Example: ferret train --config ferret_core/training/configs/playground.yaml steps=500 output=runs/try
    """
    from ferret_core.training.config import TrainConfig  # torch is slow to import
    from ferret_core.training.loop import train as run

    settings = TrainConfig.load(config, overrides or [])
    if show:
        for field in dataclasses.fields(settings):
            typer.echo(f"{field.name}: {getattr(settings, field.name)}")
        return
    typer.echo(f"wrote {run(settings)}")
