"""Records as rows of a Parquet file that any other reader understands; `docs/data.md` lists the columns.

Needs pyarrow, which comes with the `train` extra.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ferret_core.data.records import Record

_ROWS = 8192  # of a row group


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Rows as `Record.from_json` takes them. Columns that are not ours are passed over. Raises `ValueError`: not Parquet."""
    pyarrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: is not a Parquet file: {error}") from error
    with file:
        columns = [name for name in _schema().names if name in file.schema_arrow.names]
        for batch in file.iter_batches(1024, columns=columns):
            for row in batch.to_pylist():
                yield _from_row(row)


def write_parquet(file: BinaryIO, records: Iterable[Record]) -> int:
    """Writes records, compressed with zstd; returns their number."""
    pyarrow, parquet = _pyarrow()
    records, schema, count = iter(records), _schema(), 0
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while rows := [_to_row(record) for record in islice(records, _ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def _schema() -> Any:
    pyarrow, _ = _pyarrow()
    text = pyarrow.string()
    columns = {
        "id": text,
        "image": text,
        "width": pyarrow.int32(),
        "height": pyarrow.int32(),
        "regions": pyarrow.list_(text),  # JSON, an object each: kinds of region have no fields in common
        "boxes": pyarrow.list_(pyarrow.list_(pyarrow.float64())),
        "turns": pyarrow.list_(pyarrow.struct({"question": text, "answer": text})),
        "dataset": text,
        "license": text,
        "split": text,
    }
    return pyarrow.schema(columns)


def _to_row(record: Record) -> dict[str, Any]:
    row = record.to_json()
    row["width"], row["height"] = row.pop("size")
    row["regions"] = [json.dumps(region) for region in row["regions"]]
    return row


def _from_row(row: dict[str, Any]) -> dict[str, Any]:
    value = {name: column for name, column in row.items() if column is not None}
    if "width" in value and "height" in value:
        value["size"] = [value.pop("width"), value.pop("height")]
    value["regions"] = [_try_json(region) for region in value.get("regions", ())]
    return value


def _try_json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text  # which is no region, and reading it says so


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise RuntimeError("Parquet needs pyarrow: pip install 'ferret-platform[train]'") from error
    return pyarrow, pyarrow.parquet
