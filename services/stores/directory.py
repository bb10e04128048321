"""Files in a directory of this user alone, which every replica on the machine shares."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from ferret_core.disk import written_whole
from services.errors import UnavailableError
from services.stores.objects import ObjectStore

logger = logging.getLogger("ray.serve")

_SWEEP_SECONDS = 60 * 60  # between two looks at all files, unless the directory outgrows its limit before
_BAD = ".bad"
_UNFINISHED_SECONDS = 60 * 60  # a file that is not whole by then belongs to a process that was killed


class Directory(ObjectStore):
    """A directory whose files are seen whole or not at all.

    The least recently used go when it outgrows `max_bytes`, and those that nobody used for `max_seconds`.
    """

    def __init__(self, path: str | Path, max_bytes: int | None = None, max_seconds: float | None = None) -> None:
        self.path, self.max_bytes, self.max_seconds = Path(path), max_bytes, max_seconds
        _make(self.path)
        self._grown, self._swept = 0, float("-inf")  # bytes that this replica wrote since it last looked for what must go; when

    def add(self, name: str, data: bytes) -> None:
        if not self.has(name):
            path = self.path / name
            unseen = path.with_name(f".{uuid4().hex}")
            self._write(unseen, data)
            with suppress(FileExistsError):  # another came first
                os.link(unseen, path)
            unseen.unlink()
            self._sweep_when_due()

    def replace(self, name: str, data: bytes) -> None:
        """Writes a file anew; in a `locked` block, unless it does not matter who writes last."""
        self._write(self.path / name, data)
        self._sweep_when_due()

    def get(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            if self.has(name):
                return (self.path / name).read_bytes()
        return None

    def has(self, name: str) -> bool:
        """Whether a file is here; it counts as used."""
        path = self.path / name
        try:
            if self._expired(path.stat()):
                return False
            now = time.time_ns()  # finer than the file system's own clock ticks
            os.utime(path, ns=(now, now))
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def names(self, prefix: str = "") -> list[str]:
        folder, _, start = prefix.rpartition("/")
        parent = f"{folder}/" if folder else ""
        with suppress(FileNotFoundError):
            return sorted(
                f"{parent}{path.name}{'/' if path.is_dir() else ''}"
                for path in (self.path / folder).iterdir()
                if path.name.startswith(start) and not path.name.startswith(".")
            )
        return []

    @contextmanager
    def locked(self, name: str) -> Iterator[bytes | None]:
        """A file's content, or None if there is no such file: one block at a time, in all replicas."""
        path = self.path / name
        while self.has(name):
            try:
                file = path.open("rb")
            except FileNotFoundError:  # removed by another replica
                break
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _is(file, path):  # while this one waited, another wrote the file anew
                    continue
                yield file.read()
                return
        yield None

    def contents(self) -> Iterator[bytes]:
        """Of all files, which do not count as used for that."""
        for path, status in self._files():
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # removed by another replica
                continue
            if not self._expired(status):
                yield data

    def _write(self, path: Path, data: bytes) -> None:
        _make(path.parent)
        with written_whole(path) as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
        self._grown += len(data)

    def _sweep_when_due(self) -> None:
        """With the first file that this replica writes, and then seldom: a directory may have very many."""
        outgrown = self.max_bytes is not None and self._grown > self.max_bytes / 100
        if outgrown or time.monotonic() - self._swept > _SWEEP_SECONDS:
            self._sweep()

    def _sweep(self) -> None:
        """Removes what is too old or too much, but never the last file."""
        self._grown, self._swept = 0, time.monotonic()
        files = sorted(self._files(), key=lambda entry: entry[1].st_mtime_ns)
        total = sum(status.st_size for _, status in files)
        for path, status in files[:-1]:
            if self._expired(status) or (self.max_bytes and total > self.max_bytes):
                path.unlink(missing_ok=True)
                total -= status.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.path.rglob("*"):
            try:
                status = path.stat()
                if path.name.startswith(".") and time.time() - status.st_mtime > _UNFINISHED_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # removed by another replica
                continue
            if path.is_file() and not path.name.startswith("."):
                yield path, status

    def _expired(self, status: os.stat_result) -> bool:
        return self.max_seconds is not None and time.time() - status.st_mtime > self.max_seconds


class Spool(Directory):
    """What waits here for a server that is away. Nothing is dropped: what no longer fits is refused."""

    def _write(self, path: Path, data: bytes) -> None:
        if self.max_bytes and sum(status.st_size for _, status in self._files()) + len(data) > self.max_bytes:
            raise UnavailableError("a store of the platform is away, and no more can be kept until it is back; try again later")
        super()._write(path, data)

    def _sweep(self) -> None:
        """Nothing goes."""

    def all_names(self) -> list[str]:
        """Of everything that waits."""
        return [str(path.relative_to(self.path)) for path, _ in self._files() if path.suffix != _BAD]

    def waiting(self) -> Iterator[tuple[str, bytes]]:
        """Everything that waits, each locked for the turn of the loop; what cannot be read is set aside."""
        for name in self.all_names():
            with ExitStack() as stack:
                try:
                    data = stack.enter_context(self.locked(name))
                except OSError as error:
                    self.set_aside(name, error)
                    continue
                if data is not None:
                    yield name, data

    def set_aside(self, name: str, error: Exception) -> None:
        """So that something damaged does not keep what comes after it from the server."""
        # Not by its name: who knows the id of a conversation may read it.
        logger.error("something in %s cannot be read (%s); it is set aside as *%s", self.path, type(error).__name__, _BAD)
        with suppress(FileNotFoundError):
            (self.path / name).rename(self.path / f"{name}{_BAD}")


def _is(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that is there now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _make(directory: Path) -> None:
    """Makes a directory, and those it lies in, for this user alone."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
