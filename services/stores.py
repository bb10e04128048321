"""Where images are kept between questions."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from ferret_core.images import image_id

_PARTIAL = "partial-"


class ImageStore:
    """Encoded images by content id, in a directory that every replica on the machine shares.

    Writing is atomic and idempotent. The least recently used images go when the directory outgrows `max_bytes`.
    """

    def __init__(self, directory: str | Path, max_bytes: int) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.max_bytes = max_bytes

    def put(self, data: bytes) -> str:
        """Stores an image; returns its id."""
        name = image_id(data)
        path = self._path(name)
        if not _touch(path):
            with tempfile.NamedTemporaryFile(dir=self.directory, prefix=_PARTIAL) as file:
                file.write(data)
                file.flush()
                with suppress(FileExistsError):  # another replica was faster
                    os.link(file.name, path)
            _touch(path)
            self._evict()
        return name

    def get(self, name: str) -> bytes | None:
        """The image with an id, or None if it is not, or no longer, here."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        _touch(path)
        return data

    def _path(self, name: str) -> Path:
        # Only the hexadecimal digest reaches the file system, whatever a client sent.
        digest = name.removeprefix("sha256:")
        return self.directory / (digest if len(digest) == 64 and all(c in "0123456789abcdef" for c in digest) else "unknown")

    def _evict(self) -> None:
        files = []
        for path in self.directory.iterdir():
            with suppress(FileNotFoundError):  # evicted by another replica
                if not path.name.startswith(_PARTIAL):
                    files.append((path.stat(), path))
        files.sort(key=lambda entry: entry[0].st_mtime_ns)
        total = sum(status.st_size for status, _ in files)
        for status, path in files[:-1]:
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= status.st_size


def _touch(path: Path) -> bool:
    """Marks a file as just used, finer than the file system's own clock ticks; False if there is none."""
    now = time.time_ns()
    try:
        os.utime(path, ns=(now, now))
    except FileNotFoundError:
        return False
    return True
