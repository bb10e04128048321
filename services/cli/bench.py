"""`ferret bench`: a running platform under load."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from ferret_core.cli import connection
from services.client import DEFAULT_SERVER, AsyncFerretClient
from services.load_generator import Load, Outcome, Question, playground_questions, run
from services.load_report import draw, summarize, table


def bench(
    server: Annotated[str, typer.Option(help="HOST:PORT of the platform.", envvar="FERRET_SERVER")] = DEFAULT_SERVER,
    model: Annotated[str, typer.Option(help="Which model; the platform's default if empty.", envvar="FERRET_MODEL")] = "",
    token: connection.Token = "",
    tls: connection.TLS = False,
    tls_ca: connection.TLSCa = None,
    tls_cert: connection.TLSCert = None,
    tls_key: connection.TLSKey = None,
    users: Annotated[int, typer.Option(help="Closed loop: so many users, who ask again when they are answered.")] = 4,
    rate: Annotated[float, typer.Option(help="Open loop: so many questions a second, answered or not.")] = 0.0,
    seconds: Annotated[float, typer.Option(help="How long questions are asked, after the warm-up.")] = 30.0,
    warmup: Annotated[float, typer.Option(help="Seconds that are not counted.")] = 3.0,
    pictures: Annotated[int, typer.Option(help="How many pictures of the playground are asked about.", min=1)] = 8,
    image: Annotated[Path | None, typer.Option(help="A picture of your own instead.", exists=True)] = None,
    question: Annotated[str, typer.Option(help="The question about your own picture.")] = "Describe the image.",
    max_new_tokens: Annotated[int, typer.Option(help="Of each answer.")] = 64,
    seed: Annotated[int, typer.Option(help="Of times and of the order of the questions.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Directory for load.json and load.png.")] = None,
) -> None:
    """Put a running platform under load, and say how long people would wait.

    Examples: ferret bench --users 8; ferret bench --rate 2.5 --seconds 120 --output report
    """
    load = Load(users=users, rate=rate, seconds=seconds, warmup=warmup, max_new_tokens=max_new_tokens, seed=seed)
    connected = partial(AsyncFerretClient.connect, server, model, token, tls, tls_ca, tls_cert, tls_key)
    questions = [Question(image, question)] if image else playground_questions(pictures)
    with tqdm(unit=" answers", disable=None) as progress:

        def told(outcome: Outcome) -> None:
            progress.set_postfix_str(outcome.error or f"{outcome.end - outcome.due:.2f} s")
            progress.update()

        outcomes = asyncio.run(run(load, questions, connected, told))
    summary = summarize(load, outcomes)
    typer.echo(table(summary))
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / "load.json").write_text(json.dumps({"load": asdict(load), **summary}, indent=2) + "\n")
        draw(load, outcomes, output / "load.png")
        typer.echo(f"written: {output}/load.json and load.png")
