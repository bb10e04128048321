"""Parts of a checkpoint in one file, as LLaVA's stage 1 and the original's projector-only checkpoints are:

    extract("FERRET-7B", "mm_projector.bin", ["projector"])

`model.mm_projector.weight` and so on, for `ferret checkpoint assemble --projector`, for the original code, or for LLaVA's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ferret_core.checkpoint.layouts import open_checkpoint
from ferret_core.checkpoint.options import Layout
from ferret_core.checkpoint.original import as_original
from ferret_core.checkpoint.parts import PARTS, part_of
from ferret_core.checkpoint.shards import write_pickle, write_safetensors
from ferret_core.disk import written_whole


def extract(source: str | Path, output: str | Path, parts: Sequence[str], layout: Layout = "original") -> int:
    """Writes the weights of some parts into one file; returns how many.

    Args:
        source: a bundled checkpoint or a directory, in either layout.
        output: `.safetensors`, or `.bin` for a pickle.
        parts: of `PARTS`; one that is named twice is there once.
        layout: whose names the weights get.

    Raises:
        ValueError: the source has no such part or is quantized, or the output's suffix says nothing.
    """
    output = Path(output)
    if output.suffix not in (".safetensors", ".bin"):
        raise ValueError(f"output: {output} must end in .safetensors or .bin")
    if os.path.lexists(output):
        raise ValueError(f"output: {output} is there already; name another file, or remove it")
    held, weights = open_checkpoint(source).weights.values(), []
    for part in dict.fromkeys(parts):
        if part not in PARTS:
            raise ValueError(f"part: must be one of {', '.join(PARTS)}, got {part!r}")
        found = [weight for weight in held if part_of(weight.name) == part]
        if not found:
            raise ValueError(f"part: {source} has no {part.replace('_', ' ')}")
        weights += found
    named = [as_original(weight) if layout == "original" else weight for weight in weights]
    with written_whole(output) as file:
        (write_pickle if output.suffix == ".bin" else write_safetensors)(named, file)
    return len(named)
