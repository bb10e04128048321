"""`ferret checkpoint`: make, and look into, checkpoints."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from ferret_core.checkpoint.options import Dtype, Format, Layout

app = typer.Typer(no_args_is_help=True, help="Make, convert, compare and inspect checkpoints.")
delta = typer.Typer(no_args_is_help=True, help="Add published differences to their base, or take them.")
app.add_typer(delta, name="delta")


Output = Annotated[Path, typer.Option(help="The directory to make.")]
FormatOption = Annotated[Format, typer.Option(help="Of the files; bin, pickles, in the original layout only.")]
ShardGib = Annotated[float, typer.Option(help="Most GiB of a file.", min=0.001, max=1024)]
Tower = Annotated[
    Path | None, typer.Option(help="CLIP's directory, for a checkpoint that comes without.", exists=True, file_okay=False)
]
Vocabulary = Annotated[
    Path | None,
    typer.Option(help="Directory with tokenizer.model, for the original layout, if the source has none.", exists=True),
]


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the process as an error does, so that nothing half-written is left behind."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@app.callback()
def _every_command(context: typer.Context) -> None:
    context.with_resource(_terminable())


@app.command()
def assemble(
    decoder: Annotated[
        Path, typer.Option(help="LLaMA or Vicuna: config.json, weights, tokenizer.model.", exists=True, file_okay=False)
    ],
    vision_tower: Annotated[
        Path, typer.Option(help="CLIP, whole or its vision model: config.json and weights.", exists=True, file_okay=False)
    ],
    output: Output,
    projector: Annotated[
        Path | None, typer.Option(help="LLaVA's stage-1 projector, mm_projector.bin; a new one by default.", exists=True)
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; `source` leaves them as they are.")] = "source",
    seed: Annotated[int, typer.Option(help="Of the new weights.")] = 0,
) -> None:
    """Put a checkpoint together to start training from.

    The paper starts from Vicuna v1.3, CLIP ViT-L/14-336 and LLaVA's stage-1 projector. Fetch them once, then assemble:

      hf download lmsys/vicuna-7b-v1.3 --local-dir vicuna-7b-v1.3

      hf download openai/clip-vit-large-patch14-336 --local-dir clip-vit-large-patch14-336

      ferret checkpoint assemble --decoder vicuna-7b-v1.3 --vision-tower clip-vit-large-patch14-336
      --projector mm_projector.bin --output checkpoints/ferret-7b-start

    The vocabulary gains <region_fea>, whose embedding is the mean of the others, and the region encoder is new. A projector
    that is new as well has to be trained before the rest: a first run with projector alone under `train`.
    """
    from ferret_core.checkpoint.assemble import assemble as run

    directory = run(decoder, vision_tower, output, projector, dtype=dtype, seed=seed)
    inspect(str(directory))
    typer.echo(f"wrote {directory}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A directory in either layout, or a bundled name.")],
    output: Output,
    layout: Annotated[Layout, typer.Option(help="Of the output: ours, or the original release's.")] = "ferret",
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; `source` leaves them as they are.")] = "source",
    format: FormatOption = "safetensors",
    shard_gib: ShardGib = 2.0,
    vision_tower: Tower = None,
    tokenizer: Vocabulary = None,
) -> None:
    """Write a checkpoint in our layout, or in the original release's.

    Weights go from file to file one at a time: a 13B needs no more memory than its largest weight.

    Example: ferret checkpoint convert FERRET-7B --output checkpoints/ferret-7b --vision-tower clip-vit-large-patch14-336
    """
    from ferret_core.checkpoint.convert import convert as run

    done = run(
        source,
        output,
        layout=layout,
        dtype=dtype,
        format=format,
        shard_bytes=int(shard_gib * 2**30),
        vision_tower=vision_tower,
        tokenizer=tokenizer,
    )
    typer.echo(f"wrote {done}")


@delta.command("apply")
def apply_delta(
    base: Annotated[Path, typer.Argument(help="LLaMA that the delta was made from: vicuna-7b-v1.3.", exists=True)],
    difference: Annotated[Path, typer.Argument(metavar="DELTA", help="Directory of the delta.", exists=True)],
    output: Output,
    exact: Annotated[bool, typer.Option("--exact", help="Do not round the sum: float32, twice the size.")] = False,
    check: Annotated[bool, typer.Option(help="Refuse a base that the delta cannot have been made from.")] = True,
    layout: Annotated[Layout | None, typer.Option(help="Of the output; the delta's by default.")] = None,
    format: FormatOption = "safetensors",
    shard_gib: ShardGib = 2.0,
    vision_tower: Tower = None,
    tokenizer: Vocabulary = None,
) -> None:
    """Add a delta to its base, rounding as the original release does.

    What Apple published is differences from Vicuna v1.3. Unpack the delta, fetch its base, and add them:

      hf download lmsys/vicuna-7b-v1.3 --local-dir vicuna-7b-v1.3

      hf download openai/clip-vit-large-patch14-336 --local-dir clip-vit-large-patch14-336

      ferret checkpoint delta apply vicuna-7b-v1.3 ferret-7b-delta --output checkpoints/ferret-7b
      --layout ferret --vision-tower clip-vit-large-patch14-336
    """
    from ferret_core.checkpoint.delta import apply_delta as run

    done = run(
        base,
        difference,
        output,
        exact=exact,
        check=check,
        layout=layout,
        format=format,
        shard_bytes=int(shard_gib * 2**30),
        vision_tower=vision_tower,
        tokenizer=tokenizer,
    )
    typer.echo(f"wrote {done}")


@delta.command("make")
def make_delta(
    base: Annotated[Path, typer.Argument(help="LLaMA that was fine-tuned.", exists=True)],
    target: Annotated[str, typer.Argument(help="The checkpoint, in either layout.")],
    output: Output,
    exact: Annotated[bool, typer.Option("--exact", help="In float32 throughout, twice the size.")] = False,
    format: FormatOption = "safetensors",
    shard_gib: ShardGib = 2.0,
) -> None:
    """Take a model's differences from its base, to publish them where the base may not be.

    Example: ferret checkpoint delta make vicuna-7b-v1.3 FERRET-7B --output ferret-7b-delta
    """
    from ferret_core.checkpoint.delta import make_delta as run

    done = run(base, target, output, exact=exact, format=format, shard_bytes=int(shard_gib * 2**30))
    typer.echo(f"wrote {done}")


@app.command("merge-lora")
def merge_lora(
    base: Annotated[str, typer.Argument(help="The checkpoint that was adapted, in either layout.")],
    adapter: Annotated[Path, typer.Argument(help="Directory of peft's adapters.", exists=True, file_okay=False)],
    output: Output,
    layout: Annotated[Layout | None, typer.Option(help="Of the output; the base's by default.")] = None,
    format: FormatOption = "safetensors",
    shard_gib: ShardGib = 2.0,
    vision_tower: Tower = None,
    tokenizer: Vocabulary = None,
) -> None:
    """Merge low-rank adapters into the model that they adapt.

    A `non_lora_trainables.bin` beside them, of the original release's and LLaVA's recipe, is put in as well.

    Example: ferret checkpoint merge-lora checkpoints/ferret-7b-start lora --output checkpoints/merged
    """
    from ferret_core.checkpoint.lora import merge_lora as run

    done = run(
        base,
        adapter,
        output,
        layout=layout,
        format=format,
        shard_bytes=int(shard_gib * 2**30),
        vision_tower=vision_tower,
        tokenizer=tokenizer,
    )
    typer.echo(f"wrote {done}")


@app.command()
def extract(
    source: Annotated[str, typer.Argument(help="A directory in either layout, or a bundled name.")],
    output: Annotated[Path, typer.Option(help="The file to make: .safetensors, or .bin for a pickle.")],
    part: Annotated[
        list[str],
        typer.Option(metavar="PART", help="vision_tower, projector, region_encoder or decoder. May be repeated."),
    ],
    layout: Annotated[Layout, typer.Option(help="Whose names the weights get.")] = "original",
) -> None:
    """Write parts of a checkpoint into one file: the projector alone, as LLaVA's stage 1 does, or the region encoder.

    Example: ferret checkpoint extract FERRET-7B --part projector --output mm_projector.bin
    """
    from ferret_core.checkpoint.extract import extract as run

    count = run(source, output, part, layout)
    typer.echo(f"wrote {count} weights to {output}")


@app.command()
def quantize(
    source: Annotated[str, typer.Argument(help="A directory in our layout, or a bundled name.")],
    output: Output,
    bits: Annotated[int, typer.Option(help="8 or 4.")] = 8,
    scenes: Annotated[int, typer.Option(help="Playground scenes on which to compare both; none by default.", min=0)] = 0,
) -> None:
    """Write a checkpoint whose decoder is in integers: smaller files. Needs bitsandbytes: the extra `quantize`.

    Example: ferret checkpoint quantize playground --output checkpoints/playground-int8 --scenes 100
    """
    from ferret_core.checkpoint import quantize as module

    done = module.quantize(source, output, bits=bits)
    typer.echo(f"wrote {done}")
    if scenes:
        typer.echo(module.table([module.measure(each, scenes) for each in (source, output)]))


@app.command()
def verify(
    first: Annotated[str, typer.Argument(help="A checkpoint in either layout, or a file of weights.")],
    second: Annotated[str | None, typer.Argument(help="Another; by default its own SHA256SUMS.")] = None,
    tolerance: Annotated[float, typer.Option(help="The largest difference of two values that is none.", min=0)] = 0.0,
) -> None:
    """Compare two checkpoints value by value, or one with its checksums. Exits with 1 if they differ.

    Example: ferret checkpoint verify FERRET-7B checkpoints/ferret-7b --tolerance 1e-3
    """
    from ferret_core.checkpoint.checksums import check_checksums
    from ferret_core.checkpoint.verify import compare

    if second is None:
        problems = tuple(check_checksums(first))
        equal = f"{first}: all files are as they were written"
    else:
        found = compare(first, second, tolerance)
        problems = found.problems
        equal = f"equal: {found.weights} weights, the largest difference of two values is {found.largest:.3g}"
        equal += "; the vision tower, which only one has, was not compared" if found.without_tower else ""
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo(equal)


@app.command()
def inspect(
    checkpoint: Annotated[str, typer.Argument(help="A directory, ours or in the original layout, or a bundled name.")],
    tensors: Annotated[bool, typer.Option(help="List every weight with its shape.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what a checkpoint holds: parts, parameters, shapes and types, without loading it. Exits with 1 if it is broken.

    Example: ferret checkpoint inspect playground
    """
    from ferret_core.checkpoint.inspection import inspect_checkpoint

    found = inspect_checkpoint(checkpoint)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        typer.echo(found)
    if tensors and not as_json:
        for weight in found.weights:
            typer.echo(f"{weight.name}  {' x '.join(map(str, weight.shape))}  {weight.dtype_name}")
    if found.problems:
        raise typer.Exit(1)
