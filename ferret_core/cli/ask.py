"""`ferret ask`: one question about one picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from ferret_core.answer import Answer, AnswerEvent, Finish, TextDelta
from ferret_core.checkpoint.bundled import DEFAULT
from ferret_core.cli import connection
from ferret_core.geometry import Box, Mask, Point, Polygon, Region, RegionError, Scribble
from ferret_core.images import open_image
from ferret_core.overlay import draw_overlay
from ferret_core.prompt import Turn, mentioned_regions

_FORMATS = """point:X,Y  box:X1,Y1,X2,Y2  polygon:X,Y,X,Y,X,Y,...  scribble:X,Y,X,Y,...@WIDTH  mask:FILE (a picture, \
non-zero where the region is, or COCO RLE in JSON)"""


def ask(
    image: Annotated[Path, typer.Argument(help="The picture.", exists=True, dir_okay=False)],
    question: Annotated[str, typer.Argument(help=r"Mention regions as \[region0], \[region1], ...")],
    region: Annotated[list[str] | None, typer.Option(help=f"A region, in pixels; may be repeated. {_FORMATS}")] = None,
    history: Annotated[
        list[str] | None, typer.Option(help="An earlier turn as 'QUESTION => ANSWER', oldest first; may be repeated.")
    ] = None,
    model: connection.Model = "",
    server: connection.Server = None,
    token: connection.Token = "",
    tls: connection.TLS = False,
    tls_ca: connection.TLSCa = None,
    tls_cert: connection.TLSCert = None,
    tls_key: connection.TLSKey = None,
    overlay: Annotated[Path | None, typer.Option(help="Write the picture with regions and boxes drawn on it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with text, spans and usage.")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is deterministic; higher is more varied.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample only from the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the random choices.")] = 0,
) -> None:
    r"""Ask about a picture.

    Example: ferret ask scene.png "What is \[region0]?" --region point:120,80 --overlay answer.png
    """
    regions = [parse_region(text) for text in region or ()]
    turns = [parse_turn(text) for text in history or ()]
    mentioned = {n for text in (question, *(turn.question for turn in turns)) for n in mentioned_regions(text)}
    for unused in sorted(set(range(len(regions))) - mentioned):
        typer.echo(f"ferret ask: --region {unused + 1} is not mentioned; write [region{unused}] in the question", err=True)

    described = {"token": token, "tls": tls, "ca": tls_ca, "certificate": tls_cert, "key": tls_key}
    predictor = connection.connect(server, model, **described) if server else _local(model)
    predictor.set_image(image)
    events: list[AnswerEvent] = []
    for event in predictor.stream(
        question, regions, turns, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    ):
        events.append(event)
        if isinstance(event, TextDelta) and not as_json:
            typer.echo(event.text, nl=False)
        if isinstance(event, Finish) and event.usage.dropped_turns:
            typer.echo(f"\nferret ask: the oldest {event.usage.dropped_turns} turns did not fit and were left out", err=True)
    answer = Answer.collect(events)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(answer), ensure_ascii=False))
    else:
        typer.echo()
        print_spans(answer)
    if overlay:
        draw_overlay(open_image(image), answer.spans, dict(enumerate(regions))).save(overlay)
        typer.echo(f"wrote {overlay}", err=True)


def print_spans(answer: Answer) -> None:
    """A line for each grounded phrase, its box in whole pixels."""
    for span in answer.spans:
        x1, y1, x2, y2 = (round(v) for v in dataclasses.astuple(span.box))
        typer.echo(f"  {span.phrase or '(box)'}: x {x1} to {x2}, y {y1} to {y2}")


def parse_region(text: str) -> Region:
    """A region written as `--region` takes it. Raises `RegionError` that shows how to write it."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "mask":
            return _read_mask(Path(rest))
        numbers, _, width = rest.partition("@")
        values = [float(number) for number in numbers.split(",")]
        points = tuple(zip(values[::2], values[1::2], strict=True))
        match kind:
            case "point":
                return Point(*values)
            case "box":
                return Box(*values)
            case "polygon":
                return Polygon(points)
            case "scribble":
                return Scribble(points, float(width)) if width else Scribble(points)
    except (TypeError, ValueError) as error:
        raise RegionError(f"--region {text}: {error}; write it as {_FORMATS}") from error
    raise RegionError(f"--region {text}: unknown kind {kind!r}; write it as {_FORMATS}")


def parse_turn(text: str) -> Turn:
    """A turn written as `--history` takes it."""
    question, separator, answer = text.partition(" => ")
    if not separator:
        raise ValueError(f"--history {text!r}: write it as 'QUESTION => ANSWER'")
    return Turn(question, answer)


def _read_mask(path: Path) -> Mask:
    if path.suffix == ".json":
        return Mask.from_coco(json.loads(path.read_text()))
    with Image.open(path) as picture:
        return Mask.from_array(np.asarray(picture.convert("L")))


def _local(model: str) -> Any:
    from ferret_core.predictor import FerretPredictor  # slow to import: only where it is needed

    return FerretPredictor.from_pretrained(model or DEFAULT)
