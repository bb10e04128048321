"""`ferret data`: make grounded data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

app = typer.Typer(no_args_is_help=True, help="Make grounded data.")


@app.callback()
def _group() -> None:
    """Keeps `playground` a subcommand while it is the only one."""


@app.command()
def playground(
    output: Annotated[Path, typer.Argument(help="Directory for the pictures and records.jsonl.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    count: Annotated[int, typer.Option(help="How many scenes.", min=1)] = 10,
    first: Annotated[int, typer.Option(help="Index of the first scene.", min=0)] = 0,
    turns: Annotated[int, typer.Option(help="Questions about each.", min=1)] = 6,
) -> None:
    """Write playground scenes with their questions and answers.

    Example: ferret data playground scenes --split test --count 5
    """
    from ferret_core.data.playground import SPLITS, playground_example

    if split not in SPLITS:
        raise ValueError(f"--split: must be one of {', '.join(SPLITS)}, got {split!r}")
    output.mkdir(parents=True, exist_ok=True)
    with (output / "records.jsonl").open("w") as records:
        for index in tqdm(range(first, first + count), unit="scene"):
            example = playground_example(split, index, turns)
            path = output / example.record.image
            path.parent.mkdir(exist_ok=True)
            example.image.save(path)
            records.write(json.dumps(example.record.to_json()) + "\n")
    typer.echo(f"wrote {count} scenes to {output}")
