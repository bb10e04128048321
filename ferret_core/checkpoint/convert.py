"""A checkpoint from one layout to the other.

convert("FERRET-7B", "checkpoints/ferret-7b")
convert("checkpoints/ferret-7b", "FERRET-7B-again", layout="original")
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from ferret_core.checkpoint.checksums import Origin
from ferret_core.checkpoint.layouts import open_checkpoint, require_whole, write_checkpoint
from ferret_core.checkpoint.options import Dtype, Files, Layout


def convert(
    source: str | Path,
    output: str | Path,
    *,
    layout: Layout = "ferret",
    dtype: Dtype = "source",
    vision_tower: str | Path | None = None,
    **files: Unpack[Files],
) -> Path:
    """Writes a checkpoint in a layout, from either. Returns its directory, which appears when it is complete.

    Args:
        source: a bundled checkpoint or a directory.
        output: the directory to make.
        layout: of the output.
        dtype: of its weights; `source` leaves each as it is.
        vision_tower: directory of the CLIP, for a source that comes without.
        files: as in `Files`.

    Raises:
        ValueError: the source is incomplete, a delta or quantized, or the layout cannot express it.
    """
    checkpoint = open_checkpoint(source, vision_tower)
    require_whole(checkpoint, f"source: {source}")
    return write_checkpoint(
        checkpoint,
        output,
        origin=Origin("convert", {"source": source, "vision tower": vision_tower}),
        layout=layout,
        dtype=dtype,
        **files,
    )
