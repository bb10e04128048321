"""`ferret data`: make, check, count, look at and convert grounded data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from ferret_core.cli import build

if TYPE_CHECKING:
    from ferret_core.data.images import Images
    from ferret_core.data.records import Record

app = typer.Typer(no_args_is_help=True, help="Make, check, count, look at and convert grounded data.")

app.command("build")(build.build)

_FILE = typer.Argument(help="Records: .jsonl, .parquet, or the original release's .json.", exists=True, dir_okay=False)
_IMAGES = typer.Option(help="Where the pictures are: a directory or s3://BUCKET/PREFIX.")


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
    from ferret_core.data.files import write_records
    from ferret_core.data.playground import playground_example
    from ferret_core.data.records import SPLITS

    if split not in SPLITS:
        raise ValueError(f"--split: must be one of {', '.join(SPLITS)}, got {split!r}")

    def draw() -> Iterator[Record]:
        for index in tqdm(range(first, first + count), unit="scene"):
            example = playground_example(split, index, turns)
            path = output / example.record.image
            path.parent.mkdir(parents=True, exist_ok=True)
            example.image.save(path)
            yield example.record

    write_records(output / "records.jsonl", draw())
    typer.echo(f"wrote {count} scenes to {output}")


@app.command()
def check(
    file: Annotated[Path, _FILE],
    images: Annotated[str, _IMAGES] = "",
    skip_bad: Annotated[int, typer.Option(help="How many bad records are put up with.", min=0)] = 0,
    output: Annotated[Path | None, typer.Option(help="Write the good records there: .jsonl or .parquet.")] = None,
) -> None:
    """Name everything that is wrong with the records of a file, and with their pictures if it is told where they are.

    Example: ferret data check scenes/records.jsonl --images scenes --skip-bad 10 --output good.jsonl
    """
    from ferret_core.data.checks import examine
    from ferret_core.data.files import write_records
    from ferret_core.data.images import Images

    reasons: Counter[str] = Counter()
    good = bad = 0

    def good_records() -> Iterator[Record]:
        nonlocal good, bad
        for record, problems in tqdm(examine(file, Images(images) if images else None), unit="record", delay=2, disable=None):
            for problem in problems:
                typer.echo(str(problem))
            if isinstance(record, ValueError) or problems:
                reasons.update({problem.reason for problem in problems})
                bad += 1
            else:
                good += 1
                yield record
        for reason, count in reasons.most_common():
            typer.echo(f"{count:7,}  {reason}")
        typer.echo(f"{good:,} good records, {bad:,} bad")
        if bad > skip_bad:
            unwritten = f"; {output} was not written" if output else ""
            raise ValueError(f"{bad:,} bad records, and --skip-bad puts up with {skip_bad:,}{unwritten}")

    if output:
        write_records(output, good_records())
        typer.echo(f"wrote {good:,} records to {output}")
    else:
        for _ in good_records():
            pass


@app.command()
def stats(
    files: Annotated[list[Path], _FILE],
    images: Annotated[str, _IMAGES] = "",
    html: Annotated[Path | None, typer.Option(help="Write a page with charts.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count what is in files: records, turns, regions, boxes, words, and where they come from.

    Example: ferret data stats scenes/records.jsonl --html stats.html
    """
    from ferret_core.data.files import read_records
    from ferret_core.data.statistics import collect

    records = (record for file in files for record in read_records(file, _images(file, images)))
    statistics = collect(_progress(records))
    typer.echo(json.dumps(statistics.to_json(), ensure_ascii=False) if as_json else statistics.to_text())
    if html:
        html.write_text(statistics.to_html(", ".join(file.name for file in files)))
        typer.echo(f"wrote {html}", err=True)


@app.command()
def preview(
    file: Annotated[Path, _FILE],
    output: Annotated[Path, typer.Option(help="The page.")] = Path("preview.html"),
    images: Annotated[str, typer.Option(help=f"{_IMAGES.help} Beside the file by default.")] = "",
    count: Annotated[int, typer.Option(help="How many records, at random.", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="Another seed, other records.")] = 0,
    dataset: Annotated[str, typer.Option(help="Only of this dataset.")] = "",
) -> None:
    """Write a page that shows records: pictures with regions and boxes drawn on them, and conversations.

    Example: ferret data preview scenes/records.jsonl --count 20
    """
    from ferret_core.data.files import RecordFile
    from ferret_core.data.preview import preview_html, sample_records

    place = _images(file, images)
    records = RecordFile(file, place)
    chosen = list(sample_records(records, count, seed, dataset))
    if not chosen:
        raise ValueError(f"{file}: no records" + (f" of dataset {dataset!r}" if dataset else ""))
    note = f"{len(chosen):,} of {len(records):,} records" + (f", of dataset {dataset}" if dataset else "") + f", seed {seed}"
    output.write_text(preview_html(tqdm(chosen, unit="record", delay=2, disable=None), place, file.name, note))
    typer.echo(f"wrote {output}")


@app.command()
def convert(
    source: Annotated[Path, _FILE],
    target: Annotated[Path, typer.Argument(help="The new file: .jsonl or .parquet.")],
    images: Annotated[str, typer.Option(help=f"{_IMAGES.help} For sizes that an original .json does not give.")] = "",
) -> None:
    """Convert records from one kind of file to another.

    Example: ferret data convert scenes/records.jsonl scenes.parquet
    """
    from ferret_core.data.files import read_records, write_records

    count = write_records(target, _progress(read_records(source, _images(source, images))))
    typer.echo(f"wrote {count:,} records to {target}")


def _images(file: Path, images: str) -> Images:
    """The pictures: where we are told, or beside the file."""
    from ferret_core.data.images import Images

    return Images(images or file.parent)


def _progress(records: Iterable[Record]) -> Iterable[Record]:
    return tqdm(records, unit="record", delay=2, disable=None)
