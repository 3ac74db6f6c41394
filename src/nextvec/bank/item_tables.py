"""Banks of items as two Parquet files: the events, and the items."""

# Axes: D width.

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nextvec.bank.bank import Bank
from nextvec.bank.ready_vectors import METADATA
from nextvec.errors import DataError
from nextvec.progress import Progress, silent

BLOCK = 10_000  # rows or items that are written at once
KEPT = ("encoder", "encoder_fingerprint", "chunking", "max_tokens", "dtype", "fingerprint")


def items_path(events: Path) -> Path:
    """The file of the items beside that of the events: ``shop.items.parquet`` beside ``shop.parquet``."""
    return events.with_name(f"{events.stem}.items{events.suffix}")


def write_item_tables(bank: Bank, path: Path, progress: Progress = silent) -> None:
    """Write ``session``, ``item``, ``index`` and, where the bank has times, ``time`` to ``path``, and the items beside it.

    The items have ``item``, ``title``, ``vector`` and, where there is text, ``text``. ``ingest`` makes the same bank of both.

    Raises:
        DataError: a bank of rows.
    """
    names = bank.table.names
    if bank.sequences.ids is None or names is None:
        raise DataError("every row of this bank is an item of its own; it is one table, not two")
    width = pa.list_(pa.float16() if bank.manifest.dtype == "float16" else pa.float32(), bank.dim)
    text = [("text", pa.string())] if bank.manifest.text else []
    made = {METADATA: json.dumps({name: getattr(bank.manifest, name) for name in KEPT}).encode()}
    schema = pa.schema([("item", pa.string()), ("title", pa.string()), ("vector", width), *text], made)
    _write(items_path(path), schema, len(bank.table), lambda part: _items(bank, names, part), "writing items", progress)
    time = [] if bank.sequences.times is None else [("time", pa.from_numpy_dtype(bank.sequences.times.dtype))]
    fields = [("session", pa.string()), ("item", pa.string()), ("index", pa.int64()), *time]
    ordered = {METADATA: json.dumps({"order": "rows"}).encode()}
    _write(path, pa.schema(fields, ordered), len(bank), lambda part: _events(bank, names, part), "writing events", progress)


def _items(bank: Bank, names: Any, part: range) -> list[Any]:
    vectors = np.ascontiguousarray(bank.table.vectors[part.start : part.stop])
    columns: list[Any] = [
        pa.array([names[item][0] for item in part]),
        pa.array([names[item][1] for item in part]),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), bank.dim),
    ]
    return [*columns, pa.array([bank.table.text(item) for item in part])] if bank.manifest.text else columns


def _events(bank: Bank, names: Any, part: range) -> list[Any]:
    rows = np.arange(part.start, part.stop)
    owner, times = bank.document_of(rows), bank.sequences.times
    columns: list[Any] = [
        pa.array([bank.documents[m][0] for m in owner.tolist()]),
        pa.array([names[item][0] for item in bank.sequences.items(rows).tolist()]),
        pa.array(rows - bank.offsets[owner]),
    ]
    return columns if times is None else [*columns, pa.array(times[rows])]


def _write(
    path: Path, schema: pa.Schema, total: int, columns: Callable[[range], list[Any]], what: str, progress: Progress
) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        for part in _parts(total):
            writer.write_table(pa.Table.from_arrays(columns(part), schema=schema))
            progress(what, part.stop, total)
    os.replace(temporary, path)


def _parts(total: int) -> Iterator[range]:
    return (range(start, min(start + BLOCK, total)) for start in range(0, total, BLOCK))
