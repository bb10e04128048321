"""Checksums: of what a checkpoint was made from, and of what it is.

`SHA256SUMS` in a directory lists its files; `sha256sum --check SHA256SUMS` and `check_checksums` compare. `provenance.json`
says what command made it, and the checksums of the files it read.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ferret_core.checkpoint.bundled import checkpoint_path
from ferret_core.checkpoint.settings import read_json
from ferret_core.checkpoint.weights import weight_files

SUMS = "SHA256SUMS"
PROVENANCE = "provenance.json"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


@dataclass(frozen=True)
class Origin:
    """What a checkpoint was made from."""

    command: str
    """Of `ferret checkpoint`."""
    inputs: dict[str, str | Path | None]
    """Role to file or directory of a checkpoint: base, delta, source."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else should be known later."""
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Role to the files that were read of it, where these are not a checkpoint's."""

    def to_json(self) -> dict[str, Any]:
        """With the checksums of all files of weights that were read."""
        inputs = {
            role: {"name": Path(os.path.abspath(path)).name, "files": _sums(path, self.files.get(role))}
            for role, path in self.inputs.items()
            if path is not None
        }
        return {"command": f"ferret checkpoint {self.command}", "inputs": inputs} | self.facts


def sha256(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_checksums(directory: Path) -> None:
    """Writes `SHA256SUMS`, of all files in and under a directory."""
    (directory / SUMS).write_text("".join(f"{sha256(directory / name)}  {name}\n" for name in _names(directory)))


def check_checksums(directory: str | Path) -> list[str]:
    """What is wrong with a directory's files by its `SHA256SUMS`; nothing, if all are as they were.

    Raises:
        ValueError: it has none, or one that lists nothing or is damaged.
    """
    directory = Path(checkpoint_path(str(directory)))
    if not directory.exists():
        raise ValueError(f"{directory}: does not exist")
    if not (directory / SUMS).is_file():
        raise ValueError(f"{directory}: no {SUMS} to check it by; name a second checkpoint to compare it with")
    problems, listed = [], set()
    for number, line in enumerate((directory / SUMS).read_text(errors="replace").splitlines(), 1):
        found = _LINE.fullmatch(line)
        if not found:
            raise ValueError(f"{directory / SUMS}: line {number} is no checksum and name; get the checkpoint again")
        expected, name = found.groups()
        listed.add(name)
        if not (directory / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256(directory / name) != expected:
            problems.append(f"{name} has changed")
    if not listed:
        raise ValueError(f"{directory / SUMS}: lists no file; get the checkpoint again")
    return problems + [f"{name} was added" for name in _names(directory) if name not in listed]


def provenance(directory: str | Path) -> dict[str, Any]:
    """What a directory's `provenance.json` says; nothing if it has none."""
    return read_json(Path(directory) / PROVENANCE)


def _names(directory: Path) -> Iterator[str]:
    """Of the files in and under a directory; not of hidden ones, which no loader reads and downloads leave behind."""
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory)
        if file.is_file() and file.name != SUMS and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _sums(path: str | Path, files: Sequence[Path] | None) -> dict[str, str]:
    path = Path(checkpoint_path(str(path)))
    if files is None:
        files = [*weight_files(path), *(weight_files(path / "vision_tower") if path.is_dir() else ())]
    start = path if path.is_dir() else path.parent
    return {file.relative_to(start).as_posix(): sha256(file) for file in files}
