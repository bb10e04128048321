"""Files of records.

    for record in read_records("grit.parquet"): ...     # one after the other
    records = RecordFile("grit.jsonl")                  # any of them: len(records), records[7], records.text_lengths
    write_records("grit.parquet", records)              # a whole file or none

Three kinds of file, told apart by their suffix: `.jsonl` has one record a line, `.parquet` one a row (`docs/data.md` lists
the columns), and the original release's `.json` is only read. Whatever is wrong with a record is a `ValueError` that says
where: "grit.jsonl: line 17: record vg-3: field 'size' is missing".
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from ferret_core.data.images import Images
from ferret_core.data.original import try_original
from ferret_core.data.parquet import read_parquet, write_parquet
from ferret_core.data.records import Record
from ferret_core.disk import ferret_home, written_whole

PLACES = {".jsonl": "line", ".parquet": "row", ".json": "entry"}
"""What the place of a record is called, by the suffix of its file."""


# ---- one after the other ---------------------------------------------------------------------------------------------


def read_records(path: str | Path, images: Images | None = None) -> Iterator[Record]:
    """The records of a file, in order.

    Args:
        path: a `.jsonl`, `.parquet` or original `.json` file.
        images: where an original file's pictures lie, whose sizes it may not give.

    Raises:
        ValueError: of another kind, or a record in it that cannot be read.
        FileNotFoundError: no such file.
    """
    for record in try_records(path, images):
        if isinstance(record, ValueError):
            raise record
        yield record


def try_records(path: str | Path, images: Images | None = None) -> Iterator[Record | ValueError]:
    """As `read_records`, but a record that cannot be read is its error, and the next one follows."""
    path = _check_kind(path)
    for number, row in enumerate(_rows(path, images), 1):
        try:
            yield _read_row(row, path, number)
        except ValueError as error:
            yield error


def write_records(path: str | Path, records: Iterable[Record]) -> int:
    """Writes a `.jsonl` or `.parquet` file and returns the number of records. If that fails half-way, what was there stays."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: records are written as .jsonl or .parquet")
    with written_whole(path) as file:
        return (_write_jsonl if path.suffix == ".jsonl" else write_parquet)(file, records)


# ---- any of them -----------------------------------------------------------------------------------------------------


class RecordFile(Sequence[Record]):
    """The records of a file by their index, none of them in memory.

    Where the lines are is kept in `FILE.index` beside the file, or where that is not allowed in `$FERRET_HOME/index`, and found
    anew when the file changes. A file that is not `.jsonl` is copied into one, which lies beside the index.

    A copy in another process (fork or pickle) reads for itself.
    """

    text_lengths: np.ndarray
    """int32 `(len,)`: characters of each record's questions and answers; 0 for a record that cannot be read."""

    def __init__(self, path: str | Path, images: Images | None = None) -> None:
        """Args as of `read_records`; a bad record is an error only when it is asked for."""
        self.path = _check_kind(path)
        index = _load_index(self.path) or _build_index(self.path, images)
        self._lines, self._offsets, self.text_lengths = index
        self._stamp = _stamp(self.path)
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self.text_lengths)

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # a slice would be a list of unknown size
        """Record `index`. Raises `ValueError` if it cannot be read."""
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.path}: no record {number} among {len(self):,}")
        number %= len(self)
        if self._file is None:
            if _stamp(self.path) != self._stamp:
                raise ValueError(f"{self.path}: has changed since it was opened; start again")
            self._file = self._lines.open("rb")
        start, end = map(int, self._offsets[number : number + 2])
        # pread, because forked processes share the file's position.
        return _read_row(os.pread(self._file.fileno(), end - start, start), self.path, number + 1)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}


_Index = tuple[Path, np.ndarray, np.ndarray]
"""The JSONL file, int64 `(len + 1,)` where its lines start, int32 `(len,)` text lengths."""


def _load_index(path: Path) -> _Index | None:
    """The index that was saved for the file as it is now."""
    for place in _index_places(path):
        lines = path if path.suffix == ".jsonl" else place.with_suffix(".jsonl")
        try:
            with np.load(place) as saved:
                if lines.exists() and tuple(saved["stamp"].tolist()) == _stamp(path):
                    return lines, saved["offsets"], saved["text_lengths"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue  # none there, or one that was damaged
    return None


def _build_index(path: Path, images: Images | None) -> _Index:
    stamp = _stamp(path)  # before reading: what is appended meanwhile makes the index stale
    place = next((place for place in _index_places(path) if _may_write(place.parent)), None)
    lines = path
    if path.suffix != ".jsonl":
        if place is None:
            raise ValueError(f"{path}: nowhere to keep a copy with an index; make {path.parent} or $FERRET_HOME writable")
        lines = place.with_suffix(".jsonl")
        with written_whole(lines) as file:
            for row in tqdm(_rows(path, images), desc=f"reading {path.name}", unit="record", delay=2, disable=None):
                file.write(row if isinstance(row, bytes) else _json_line(row))
    offsets, text_lengths = array("q", [0]), array("i")
    bar = tqdm(desc=f"indexing {path.name}", total=lines.stat().st_size, unit="B", unit_scale=True, delay=2, disable=None)
    with lines.open("rb") as file, bar:
        for line in file:
            offsets.append(offsets[-1] + len(line))
            text_lengths.append(_text_length(line))
            bar.update(len(line))
    index = np.array(offsets, np.int64), np.array(text_lengths, np.int32)
    if place:
        with written_whole(place) as file:
            np.savez(file, stamp=np.array(stamp, np.int64), offsets=index[0], text_lengths=index[1])
    return lines, *index


def _index_places(path: Path) -> tuple[Path, Path]:
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return path.with_name(f"{path.name}.index"), ferret_home() / "index" / f"{path.name}-{key}.index"


def _may_write(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _text_length(line: bytes) -> int:
    try:
        return sum(len(turn["question"]) + len(turn["answer"] or "") for turn in json.loads(line)["turns"])
    except (ValueError, KeyError, TypeError):
        return 0  # reading it says what is wrong


# ---- kinds of file ---------------------------------------------------------------------------------------------------

_Row = bytes | dict[str, Any] | str
"""A record before it is looked at: JSON text or its value. Text as a value says why an original entry cannot be read."""


def _check_kind(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in PLACES:
        raise ValueError(f"{path}: records are read from {', '.join(PLACES)} files")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _rows(path: Path, images: Images | None) -> Iterator[_Row]:
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            yield from file
    elif path.suffix == ".parquet":
        yield from read_parquet(path)
    else:
        for record in try_original(path, images):
            yield str(record) if isinstance(record, ValueError) else record.to_json()


def _read_row(row: _Row, path: Path, number: int) -> Record:
    place = f"{path}: {PLACES[path.suffix]} {number}"
    try:
        value: Any = json.loads(row) if isinstance(row, bytes) else row
    except ValueError as error:
        raise ValueError(f"{place}: is not JSON: {error}") from error
    if isinstance(value, str) and path.suffix == ".json":
        raise ValueError(value)
    try:
        return Record.from_json(value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _json_line(value: dict[str, Any] | str) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _write_jsonl(file: BinaryIO, records: Iterable[Record]) -> int:
    count = 0
    for count, record in enumerate(records, 1):  # noqa: B007
        file.write(_json_line(record.to_json()))
    return count
