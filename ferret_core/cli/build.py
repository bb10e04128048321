"""`ferret data build`: grounded conversations out of published data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ferret_core.data.build.shards import Runner


def command(runner: Callable[[int], Runner] | None = None) -> Callable[..., None]:
    """The command, with its work done by `runner(workers)`: processes of this machine by default."""

    def build(
        source: Annotated[
            str,
            typer.Argument(
                metavar="SOURCE",
                help="visual-genome, objects365, refcoco, refcoco+, refcocog, flickr30k, lvis, coco or llava.",
            ),
        ],
        root: Annotated[Path, typer.Argument(metavar="DIR", help="The data set as downloaded.", exists=True, file_okay=False)],
        output: Annotated[Path, typer.Option(help="Directory of the shards; one that is there goes on.")],
        split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
        tasks: Annotated[str, typer.Option(help="Tasks, with commas; by default those for the source.")] = "",
        per_task: Annotated[int, typer.Option(help="Most exchanges of a task about a picture.")] = 2,
        turns: Annotated[int, typer.Option(help="Most exchanges of a conversation.")] = 4,
        seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
        exclude: Annotated[
            list[Path] | None,
            typer.Option(help="Pictures to leave out: .txt, records, COCO or RefCOCO files; may be repeated.", exists=True),
        ] = None,
        detections: Annotated[
            Path | None, typer.Option(help="llava: boxes of a detector, by default COCO's own.", exists=True, dir_okay=False)
        ] = None,
        min_score: Annotated[float, typer.Option(help="llava: least score of a detection.")] = 0.5,
        skip_bad: Annotated[int, typer.Option(help="How many broken items may be left out.", min=0)] = 0,
        shards: Annotated[int, typer.Option(help="Files to write.")] = 64,
        workers: Annotated[int, typer.Option(help="Shards that are made at the same time.", min=1)] = 1,
        llm: Annotated[str, typer.Option(help="Language model for foils and the task instruct; none by default.")] = "",
        llm_url: Annotated[str, typer.Option(help="Base URL of its chat completions server.", envvar="OPENAI_BASE_URL")] = "",
        llm_cache: Annotated[Path | None, typer.Option(help="Directory of its answers; OUTPUT/llm by default.")] = None,
    ) -> None:
        """Turn a published data set into grounded conversations, questions with the answer no among them.

        Example: ferret data build coco coco/annotations --output grit/coco --exclude refcoco/refs(unc).p
        """
        from ferret_core.data.build import shards as building
        from ferret_core.data.build.language_model import LanguageModel
        from ferret_core.data.build.reading import Problems, Request
        from ferret_core.data.build.sources import SOURCES

        cache = llm_cache or output / "llm"
        model = LanguageModel(url=llm_url, model=llm, cache=cache, seed=seed) if llm else None
        default = SOURCES[source].tasks if source in SOURCES else ()
        plan = building.Plan(
            source=source,
            split=split,
            seed=seed,
            tasks=tuple(task.strip() for task in tasks.split(",")) if tasks else default or building.FREE_TASKS,
            per_task=per_task,
            turns=turns,
            llm=model,
        )
        request = Request(root, split, Problems(skip_bad), detections, min_score)
        run = (runner or building.run_here)(workers)
        report = building.build(request, plan, output, shards=shards, exclude=exclude or (), run=run)
        _print(report, output)

    return build


def _print(report: dict, output: Path) -> None:
    for problem in report["left out"]:
        typer.echo(f"left out: {problem}", err=True)
    typer.echo(f"images {report['images']:,}, of which excluded {report['excluded']:,}")
    for task, count in report["exchanges"].items():
        typer.echo(f"  {task:12} {count:,}")
    typer.echo(f"wrote {report['shards']} shards to {output}; {report['already finished']} were there")


build = command()
