"""Which weights a checkpoint has, cheaply: caches must not answer for other ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ferret_core.checkpoint.bundled import checkpoint_path

_BLOCK = 4096
_WHOLE = 2**20  # a file up to this size is read whole
_BLOCKS = 1024  # else so many blocks, evenly spread


def revision(name_or_path: str) -> str:
    """A hash of a checkpoint's files: the same wherever they are, another once they are trained further.

    Of large files it reads the header, the two ends of each tensor (in safetensors), and blocks evenly spread from the first to
    the last: some megabytes of each. A checkpoint from the hub is known by its commit.
    """
    directory = Path(checkpoint_path(name_or_path))
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name_or_path, allow_patterns="config.json")).name
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith(".")):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(directory).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for offset in sorted({*_spread(size), *(_tensor_ends(path) if path.suffix == ".safetensors" else ())}):
                file.seek(offset)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def _spread(size: int) -> Iterator[int]:
    return ((size - _BLOCK) * i // (_BLOCKS - 1) for i in range(_BLOCKS))


def _tensor_ends(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in tensor["data_offsets"])
            yield start
            yield max(start, end - _BLOCK)
