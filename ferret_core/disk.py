"""This machine's disk: files and directories that are written whole or not at all, and the place for what is this user's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


def ferret_home() -> Path:
    """This user's directory: `$FERRET_HOME`, by default `~/.ferret`."""
    return Path(os.environ.get("FERRET_HOME") or Path.home() / ".ferret")


@contextmanager
def written_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` once all is written, and vanishes if that fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def directory_written_whole(path: str | Path) -> Iterator[Path]:
    """A new directory that becomes `path` once all is written, and vanishes if that fails.

    Raises:
        ValueError: there is something already.
    """
    path = Path(path)
    if os.path.lexists(path):  # a link that leads nowhere is something as well
        raise ValueError(f"output: {path} is there already; name another directory, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)  # temporary directories are for their owner alone
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
