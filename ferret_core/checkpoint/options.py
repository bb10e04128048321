"""What can be chosen for a checkpoint that is written, by name. Light, so that a command line may start with it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict

Layout = Literal["ferret", "original"]
"""Of a checkpoint's directory: ours, or the original release's."""
Dtype = Literal["source", "float32", "float16", "bfloat16"]
"""Of the weights; `source` leaves each as it is."""
Format = Literal["safetensors", "bin"]
"""Of files with weights; `bin` is a pickle."""


class Files(TypedDict, total=False):
    """The files of a checkpoint that is written."""

    format: Format
    """Of those with weights: `safetensors` by default; `bin` for the original layout only."""
    shard_bytes: int
    """Most bytes of each of them; 2 GiB by default."""
    tokenizer: str | Path | None
    """Directory with LLaMA's `tokenizer.model`, for the original layout and a source that never was in it."""


class Writing(Files, total=False):
    """A checkpoint that is written."""

    layout: Layout | None
    """The source's by default."""
