"""Weights into files of a limited size, in the order they come, one in memory at a time.

    model-00001-of-00002.safetensors  model-00002-of-00002.safetensors  model.safetensors.index.json

Or `model.safetensors` alone, where one is enough. What each file will hold follows from shapes, so that its header is written
before the first value is computed. The original release's own code may want `pytorch_model*.bin`: those are put together in
memory, a shard at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from ferret_core.checkpoint.options import Format
from ferret_core.checkpoint.weights import SAFETENSORS_NAMES, Weight, by_name

SHARD_BYTES = 2 * 2**30

_STEMS = {"safetensors": "model", "bin": "pytorch_model"}


def plan_shards(
    weights: Iterable[Weight], shard_bytes: int | None = None, format: Format = "safetensors"
) -> dict[str, list[Weight]]:
    """What goes into which file: no more than `shard_bytes` (`SHARD_BYTES` by default) each, or a single weight."""
    limit = shard_bytes or SHARD_BYTES
    shards: list[list[Weight]] = []
    size = 0
    for weight in weights:
        if not shards or size + weight.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(weight)
        size += weight.bytes
    stem = _STEMS[format]
    if len(shards) == 1:
        return {f"{stem}.{format}": shards[0]}
    return {f"{stem}-{i:05}-of-{len(shards):05}.{format}": shard for i, shard in enumerate(shards, 1)}


def write_shards(
    weights: Iterable[Weight], directory: Path, shard_bytes: int | None = None, format: Format = "safetensors"
) -> None:
    """Writes all of them into a directory, with the index if there are several files, and shows how far it is.

    Every weight is read once; those of one type in the order they come.

    Raises:
        OSError: they are more than there is room for.
    """
    shards = plan_shards(weights, shard_bytes, format)
    total = sum(weight.bytes for shard in shards.values() for weight in shard)
    free = shutil.disk_usage(directory).free
    if total > free:
        need, room = f"{total / 2**30:.1f} GiB", f"{free / 2**30:.1f}"
        raise OSError(f"output: needs {need}, and {room} are free on its disk; make room, or name another")
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="writing", disable=None) as progress:
        for file, shard in shards.items():
            with (directory / file).open("wb") as out:
                (write_safetensors if format == "safetensors" else write_pickle)(shard, out, progress)
    if len(shards) > 1:
        places = {weight.name: file for file, shard in shards.items() for weight in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / f"{_STEMS[format]}.{format}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_safetensors(weights: Iterable[Weight], file: BinaryIO, progress: tqdm | None = None) -> None:
    """One safetensors file, weight after weight: the header, which needs shapes and types alone, goes first.

    Raises:
        OSError: there is no room for it.
        ValueError: a name is there twice.
    """
    # Wide types first: every value is aligned to its own size. Of one type they stay in order, as `write_shards` promises.
    ordered = sorted(by_name(weights).values(), key=lambda weight: -weight.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for weight in ordered:
        header[weight.name] = {
            "dtype": SAFETENSORS_NAMES[weight.dtype],
            "shape": list(weight.shape),
            "data_offsets": [offset, offset + weight.bytes],
        }
        offset += weight.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _named(file):
        file.write(len(text).to_bytes(8, "little") + text)
    for weight in ordered:
        values = _values(weight).contiguous().reshape(-1)
        with _named(file):
            file.write(values.view(torch.uint8).numpy().data)
        if progress is not None:
            progress.update(weight.bytes)


def write_pickle(weights: Iterable[Weight], file: BinaryIO, progress: tqdm | None = None) -> None:
    """One file of `torch.save`, which holds all of it in memory.

    Raises:
        OSError: there is no room for it.
        ValueError: a name is there twice.
    """
    held: dict[str, Tensor] = {}
    for weight in by_name(weights).values():
        held[weight.name] = _values(weight).clone()  # its own storage: that of a mapped file would be saved whole
        if progress is not None:
            progress.update(weight.bytes)
    with _named(file):
        torch.save(held, file)


@contextmanager
def _named(file: BinaryIO) -> Iterator[None]:
    """A full disk is told with the file's name, by torch's writer too, which calls it a `RuntimeError`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise OSError(f"{file.name}: cannot be written: {error}") from error


def _values(weight: Weight) -> Tensor:
    values = weight.read()
    if tuple(values.shape) != weight.shape or values.dtype != weight.dtype:
        raise ValueError(f"{weight.name}: is {tuple(values.shape)} of {values.dtype}, and its header says otherwise")
    return values
