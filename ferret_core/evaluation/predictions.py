"""The file of predictions: JSON lines, each with all that scoring needs.

A row is there wholly or not at all: rows go to the disk a batch at a time, and what a crash cut off in the middle is dropped
when the file is opened again. One process writes; a second one is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ferret_core.evaluation.benchmark import Prediction


class PredictionFile:
    """Predictions that have been made, and more of them.

        with PredictionFile(path) as file:
            file.append(predict(item for item in items if item.id not in file.ids))

    Raises:
        ValueError: another process writes it, or a row is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b")
        try:
            self._lock()
            self._drop_unfinished_row()
            self.ids = {prediction.item.id for prediction in read_predictions(path)}
        except BaseException:
            self._file.close()
            raise

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Adds rows; they are on the disk when this returns. Raises `ValueError` for an id that is there."""
        predictions = list(predictions)
        for prediction in predictions:
            if prediction.item.id in self.ids:
                raise ValueError(f"{self.path}: item {prediction.item.id!r} is there already; ids must differ")
            self.ids.add(prediction.item.id)
        rows = (json.dumps(prediction.to_json(), ensure_ascii=False) for prediction in predictions)
        self._file.write("".join(f"{row}\n" for row in rows).encode(errors="backslashreplace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it back when the process dies
        except BlockingIOError as error:
            raise ValueError(f"{self.path}: another process is writing it; wait for it, or use another --output") from error

    def _drop_unfinished_row(self) -> None:
        self._file.seek(0)
        length, last = 0, b""
        for last in self._file:
            length += len(last) if last.endswith(b"\n") else 0
        if last.endswith(b"\n") or not _is_whole(last):
            self._file.truncate(length)
        else:  # written by others, who end no last line
            self._file.write(b"\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The predictions of a file, in its order. Raises `ValueError` naming the line that is none or is there twice."""
    ids: set[str] = set()
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file of predictions")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n") and not _is_whole(line):
                return  # cut off by a crash
            if not line.strip():
                continue
            try:
                prediction = Prediction.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: line {number}: not a prediction: {error!r}") from error
            if prediction.item.id in ids:
                raise ValueError(f"{path}: line {number}: item {prediction.item.id!r} is there twice")
            ids.add(prediction.item.id)
            yield prediction


def _is_whole(row: str | bytes) -> bool:
    """Whether a last line is a row but for its end: no beginning of a row is JSON."""
    try:
        json.loads(row)
    except ValueError:
        return False
    return True
