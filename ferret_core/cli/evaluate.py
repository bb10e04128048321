"""`ferret eval`: how good a checkpoint is."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Annotated

import typer

from ferret_core.checkpoint.bundled import DEFAULT

app = typer.Typer(no_args_is_help=True, help="Measure a checkpoint.")


@app.callback()
def _group() -> None:
    """Keeps `playground` a subcommand while it is the only one."""


@app.command()
def playground(
    model: Annotated[str, typer.Option(help="A bundled checkpoint or a directory.")] = DEFAULT,
    scenes: Annotated[int, typer.Option(help="Scenes of the test split.", min=1)] = 1000,
    batch_size: Annotated[int, typer.Option(help="Questions answered at a time.", min=1)] = 32,
    output: Annotated[Path | None, typer.Option(help="Directory for report.md and report.json.")] = None,
) -> None:
    """Accuracy on unseen playground scenes: regions named, phrases located, questions answered.

    Example: ferret eval playground --scenes 100
    """
    from ferret_core.evaluation.playground import evaluate_playground, report, write_report
    from ferret_core.predictor import FerretPredictor

    started = time.monotonic()
    scores = evaluate_playground(FerretPredictor.from_pretrained(model), scenes, batch_size)
    facts = {
        "model": model,
        "scenes": scenes,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "processor": platform.processor() or platform.machine(),
    }
    typer.echo(report(scores, **facts))
    if output:
        write_report(output, scores, **facts)
