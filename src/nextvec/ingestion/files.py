"""Tables from files: Parquet, Arrow, JSON lines, CSV, and folders that ``datasets.save_to_disk`` wrote."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.feather as feather
import pyarrow.parquet as pq

from nextvec.bank.objects import Row, table_of_rows
from nextvec.bank.ready_vectors import METADATA
from nextvec.bank.table import BATCH, DOCUMENTS, Columns, Table, first_line, from_arrow
from nextvec.errors import DataError
from nextvec.ingestion.text import checked, decode
from nextvec.progress import Progress

JSON_LINES = (".jsonl", ".ndjson")
ARROW = (".arrow", ".feather")
CSV = {".csv": ",", ".tsv": "\t"}
TABLES = (".parquet", *ARROW, *JSON_LINES, *CSV)
STRINGS = ("id", "document", "session", "item", "title", "text", "encoder")  # columns that a CSV file gives as text
BUFFER = 2**20  # bytes read ahead in each column of a Parquet file, instead of a whole row group

Read = Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


def open_file(path: Path, scratch: Path | None, progress: Progress, columns: Columns = DOCUMENTS) -> Table:
    """The table that one file holds.

    Args:
        scratch: a folder for a temporary file without a name; None keeps rows in memory.
        columns: those that are read.

    Raises:
        DataError: the file is not in the format of its ending.
    """
    kind = path.suffix.lower()
    if kind in JSON_LINES:
        lines = _json_lines(path, progress, columns)
        rows = _documents(lines) if columns is DOCUMENTS else ((where, entry) for _, where, entry in lines)
        return table_of_rows(rows, str(path), scratch, columns)
    if kind == ".parquet":
        return open_parquet(path)
    try:
        return _csv(path, CSV[kind]) if kind in CSV else _arrow(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as {kind[1:]}: {first_line(error)}") from None


def open_table(path: Path, scratch: Path | None, progress: Progress, columns: Columns) -> Table:
    """The table of a file, of a folder of files of one kind, or of a saved dataset.

    Raises:
        DataError: there is no table, or it cannot be read.
    """
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise DataError(f"{path}: {path.suffix or 'a file without suffix'} is not a table; want {' '.join(TABLES)}")
        return open_file(path, scratch, progress, columns)
    if not path.is_dir():
        raise DataError(f"{path} does not exist")
    saved = saved_dataset(path)
    if saved is not None:
        return saved
    files = [file for file in visible(path) if file.suffix.lower() in TABLES]
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) != 1:
        raise DataError(f"{path} holds {' and '.join(kinds) or 'no'} tables; want a folder of tables of one kind")
    return shards(files, str(path), [open_file(file, scratch, progress, columns) for file in files])


def visible(folder: Path) -> list[Path]:
    """Files below ``folder`` in order of their names; hidden files, and files in hidden folders, are left out."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def open_parquet(path: Path) -> Table:
    """The table of a Parquet file, whatever the file's ending; read in batches, not in row groups.

    Raises:
        DataError: not Parquet.
    """

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path, buffer_size=BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH, columns=list(columns)):
                yield batch.select(list(columns))

    try:
        with pq.ParquetFile(path) as file:
            return Table(str(path), file.schema_arrow, read, file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {first_line(error)}") from None


def shards(paths: list[Path], where: str, tables: list[Table]) -> Table:
    """Tables of the same columns, one after another.

    Raises:
        DataError: a column is missing in one, or has another type.
    """
    schema = tables[0].schema
    for path, table in zip(paths, tables, strict=True):
        if (table.schema.metadata or {}).get(METADATA) != (schema.metadata or {}).get(METADATA):
            raise DataError(f"{where}: {paths[0].name} and {path.name} name different encoders in their metadata")
        if table.schema != schema:
            raise DataError(f"{where}: {paths[0].name} and {path.name} differ: {_difference(schema, table.schema)}")
    rows = [table.rows for table in tables]
    total = sum(count for count in rows if count is not None) if None not in rows else None

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for table in tables:
            yield from table.batches(columns)

    return Table(where, schema, read, total)


def saved_dataset(folder: Path) -> Table | None:
    """The dataset that ``datasets.save_to_disk`` wrote into ``folder``; None where it wrote none.

    Raises:
        DataError: several splits, or a file that is missing or damaged.
    """
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            raise DataError(f"{folder} holds the splits {', '.join(splits)}; name one of them, like {folder / splits[0]}")
        if not ((folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()):
            return None
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        paths = [folder / str(entry["filename"]) for entry in state["_data_files"]]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{folder} is incomplete: {type(error).__name__} {error}; save the dataset again") from None
    if state.get("_indices_data_files"):
        raise DataError(f"{folder} holds a selection of rows beside its data; call flatten_indices() before save_to_disk")
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise DataError(f"{folder} is incomplete: {missing[0] if missing else 'its data'} is missing; save the dataset again")
    try:
        return shards(paths, str(folder), [_arrow(path) for path in paths])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{folder} cannot be read: {first_line(error)}") from None


def _arrow(path: Path) -> Table:
    """An Arrow file or stream, mapped batch by batch; both have the ending ``.arrow``."""
    with open(path, "rb") as file:
        magic = file.read(6)
    if magic[:4] == b"FEA1":  # Feather before it was an Arrow file
        return from_arrow(feather.read_table(path), str(path))

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with pa.memory_map(str(path)) as source:
            if magic == b"ARROW1":
                file = pa.ipc.open_file(source)
                yield from (file.get_batch(n).select(list(columns)) for n in range(file.num_record_batches))
            else:
                yield from (batch.select(list(columns)) for batch in pa.ipc.open_stream(source))

    with pa.memory_map(str(path)) as source:
        opened = pa.ipc.open_file(source) if magic == b"ARROW1" else pa.ipc.open_stream(source)
        return Table(str(path), opened.schema, read)


def _csv(path: Path, delimiter: str) -> Table:
    """A file of separated values with a line of names; columns of names and texts are text, the types of others are found."""
    parse = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    types = dict.fromkeys(STRINGS, pa.string())

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        convert = csv.ConvertOptions(column_types=types, include_columns=list(columns))
        with csv.open_csv(path, parse_options=parse, convert_options=convert) as reader:
            yield from reader

    with csv.open_csv(path, parse_options=parse, convert_options=csv.ConvertOptions(column_types=types)) as reader:
        return Table(str(path), reader.schema, read)


def _json_lines(path: Path, progress: Progress, columns: Columns) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The number of each line that is not blank, its name in messages, and its object."""
    done, total = 0, path.stat().st_size
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            done += len(line)
            if number % 1_000 == 0 or done == total:
                progress("reading lines (bytes)", done, total)
            if not line.strip():
                continue
            try:
                entry = json.loads(decode(line, where))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON: {error}") from None
            if not isinstance(entry, dict):
                raise DataError(f"{where}: want an object with {columns.wanted}")
            yield number, where, entry


def _documents(lines: Iterator[tuple[int, str, dict[str, Any]]]) -> Iterator[Row]:
    """Lines of texts or of ready vectors, each with an id."""
    all_named: bool | None = None  # a null id counts as missing; either all lines have ids or none
    for number, where, entry in lines:
        if not {"text", "vector"} & entry.keys():
            raise DataError(f"{where}: want an object with {DOCUMENTS.wanted}")
        if "vector" not in entry:
            entry["text"] = checked(entry["text"], where)
        if not {"vector", "document"} & entry.keys():
            named = entry.get("id") is not None
            if all_named is not None and named != all_named:
                raise DataError(
                    f"{where} has {'an' if named else 'no'} id, unlike the lines before; give one to all or to none"
                )
            all_named = named
            entry["id"] = entry["id"] if named else f"{number:08d}"
        yield where, entry


def _difference(first: pa.Schema, other: pa.Schema) -> str:
    """Which column differs between two schemas."""
    for field in first:
        if field.name not in other.names:
            return f"column {field.name!r} is there in the first only"
        if other.field(field.name).type != field.type:
            return f"column {field.name!r} is {field.type} and {other.field(field.name).type}"
    return f"column {next(name for name in other.names if name not in first.names)!r} is there in the second only"
