"""Where a run's files are kept: a directory, or a prefix of an S3 bucket.

Both know files by their path relative to the run, and both write a file whole or not at all. What grows while the run goes on,
as its metrics do, is written to `directory`, from which `send` takes it.
"""

from __future__ import annotations

import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ferret_core import s3
from ferret_core.disk import written_whole

log = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes that are copied at a time


class Storage(ABC):
    """Files of a run."""

    def __init__(self, directory: Path) -> None:
        """`directory` is the local one, with all files or with copies of some."""
        self.directory = directory

    @abstractmethod
    def put(self, source: Path, name: str) -> None:
        """Stores a copy of a file. Raises `OSError` if that fails."""

    @abstractmethod
    def get(self, name: str) -> Path | None:
        """The path of a file in `directory`, or None if there is no such file."""

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """The files whose names begin with `prefix`, which ends with a slash; sorted."""

    @abstractmethod
    def remove(self, prefix: str) -> None:
        """Removes those files."""

    @abstractmethod
    def send(self, *patterns: str) -> bool:
        """Stores what was written to `directory` under such names; whether all of that is stored. What is not is logged."""

    @staticmethod
    def at(url: str, scratch: Path) -> Storage:
        """The storage at a directory or s3://BUCKET/PREFIX; `scratch` is for local copies of what is in a bucket."""
        return ObjectStorage(url, scratch) if s3.is_url(url) else DirectoryStorage(Path(url))


class DirectoryStorage(Storage):
    """A directory."""

    def put(self, source: Path, name: str) -> None:
        with source.open("rb") as file, written_whole(self.directory / name) as copy:
            shutil.copyfileobj(file, copy, _CHUNK)

    def get(self, name: str) -> Path | None:
        path = self.directory / name
        return path if path.is_file() else None

    def names(self, prefix: str) -> list[str]:
        files = (path for path in (self.directory / prefix).rglob("*") if path.is_file() and not path.name.startswith("."))
        return sorted(str(path.relative_to(self.directory)) for path in files)

    def remove(self, prefix: str) -> None:
        shutil.rmtree(self.directory / prefix, ignore_errors=True)

    def send(self, *patterns: str) -> bool:
        return True  # it was written where it belongs


class ObjectStorage(Storage):
    """A prefix of an S3 bucket."""

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(directory)
        self.bucket, key = s3.split_url(url)
        self.prefix = f"{key.strip('/')}/" if key.strip("/") else ""

    def put(self, source: Path, name: str) -> None:
        with self._client(name) as client:
            client.fput_object(self.bucket, self.prefix + name, str(source))

    def get(self, name: str) -> Path | None:
        path = self.directory / name
        try:
            with self._client(name) as client:
                client.fget_object(self.bucket, self.prefix + name, str(path))
        except FileNotFoundError:
            return None
        return path

    def names(self, prefix: str) -> list[str]:
        with self._client(prefix) as client:
            objects = client.list_objects(self.bucket, self.prefix + prefix, recursive=True)
            return sorted(each.object_name.removeprefix(self.prefix) for each in objects)

    def remove(self, prefix: str) -> None:
        for name in self.names(prefix):
            with self._client(name) as client:
                client.remove_object(self.bucket, self.prefix + name)

    def send(self, *patterns: str) -> bool:
        sent = True
        for path in (path for pattern in patterns for path in self.directory.glob(pattern) if path.is_file()):
            name = str(path.relative_to(self.directory))
            try:
                self.put(path, name)
            except OSError as error:
                sent = False
                log.error("%s was NOT saved: %s", name, error)
        return sent

    @contextmanager
    def _client(self, name: str) -> Iterator[Any]:
        """A client, and `s3.errors` around it."""
        client = s3.connect()
        with s3.errors(f"s3://{self.bucket}/{self.prefix}{name}"):
            yield client
