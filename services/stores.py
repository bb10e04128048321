"""What is kept between questions: images, conversations, and what people think of the answers."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from ferret.v1 import ferret_pb2 as pb

from ferret_core.images import image_id
from services.errors import NotFoundError

_PARTIAL = "partial-"
_SECONDS_PER_DAY = 24 * 60 * 60


class ImageStore:
    """Encoded images by content id, in a directory that every replica on the machine shares.

    Writing is atomic and idempotent. The least recently used images go when the directory outgrows `max_bytes`.
    """

    def __init__(self, directory: str | Path, max_bytes: int) -> None:
        self.directory = _private(directory)
        self.max_bytes = max_bytes

    def put(self, data: bytes) -> str:
        """Stores an image; returns its id."""
        name = image_id(data)
        path = self._path(name)
        if not _touch(path):
            _write(path, data)
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
        return _hex_file(self.directory, name.removeprefix("sha256:"), 64)

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


class ConversationStore:
    """Conversations by id, in a directory that every replica on the machine shares.

    Whoever knows an id may read and change the conversation, so ids cannot be guessed. Conversations that nobody used for
    `max_age_days` are gone; their files are deleted when another is created.
    """

    def __init__(self, directory: str | Path, max_age_days: float) -> None:
        self.directory = _private(directory)
        self.max_age_days = max_age_days

    def create(self, conversation: pb.Conversation) -> None:
        """Stores a new conversation, and sets its id."""
        for path in self.directory.iterdir():
            with suppress(FileNotFoundError):  # deleted by another replica
                if self._expired(path):
                    path.unlink()
        conversation.id = secrets.token_hex(16)
        _write(self._path(conversation.id), conversation.SerializeToString())

    def get(self, conversation_id: str) -> pb.Conversation:
        """The conversation with an id. Raises `NotFoundError` if it is not, or no longer, here."""
        with self._open(conversation_id) as file:
            return pb.Conversation.FromString(file.read())

    @contextmanager
    def update(self, conversation_id: str) -> Iterator[pb.Conversation]:
        """The conversation with an id, to be changed: one writer at a time, and nothing is written if the block raises.

        Raises `NotFoundError` as `get`.
        """
        while True:
            with self._open(conversation_id) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink == 0:  # while this one waited, another wrote the file anew
                    continue
                conversation = pb.Conversation.FromString(file.read())
                yield conversation
                _write(self._path(conversation_id), conversation.SerializeToString())
                return

    def _open(self, conversation_id: str) -> BinaryIO:
        path = self._path(conversation_id)
        with suppress(FileNotFoundError):
            if not self._expired(path):
                _touch(path)
                return path.open("rb")
        raise NotFoundError(f"conversation_id: no conversation {conversation_id!r}; create a new one")

    def _path(self, conversation_id: str) -> Path:
        return _hex_file(self.directory, conversation_id, 32)

    def _expired(self, path: Path) -> bool:
        return time.time() - path.stat().st_mtime > self.max_age_days * _SECONDS_PER_DAY


class FeedbackLog:
    """Ratings in the order they were given, a line of JSON each, in one file a day (UTC)."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = _private(directory)

    def append(self, entry: dict[str, Any]) -> None:
        """Writes an entry, and its time, in one piece: replicas do not cut into each other's lines."""
        now = datetime.now(UTC)
        line = json.dumps({"time": now.isoformat(timespec="milliseconds"), **entry}, ensure_ascii=False) + "\n"
        file = os.open(self.directory / f"{now:%Y-%m-%d}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)


def _private(directory: str | Path) -> Path:
    """The directory; it is made for this user alone if there is none."""
    path = Path(directory)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _hex_file(directory: Path, name: str, digits: int) -> Path:
    # Only hexadecimal digits reach the file system, whatever a client sent.
    return directory / (name if re.fullmatch(f"[0-9a-f]{{{digits}}}", name) else "unknown")


def _write(path: Path, data: bytes) -> None:
    """Makes a file, or makes it anew, for this user alone. Readers see all of it or nothing."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_PARTIAL, delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _touch(path: Path) -> bool:
    """Marks a file as just used, finer than the file system's own clock ticks; False if there is none."""
    now = time.time_ns()
    try:
        os.utime(path, ns=(now, now))
    except FileNotFoundError:
        return False
    return True
