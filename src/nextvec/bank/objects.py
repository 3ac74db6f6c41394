"""Python objects as tables and arrays: dataframes, columns, rows, tensors. Their libraries are not imported."""

# Axes: N rows, D width.

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nextvec.bank.indices import index_kind, index_value, indices, with_arrow_unit
from nextvec.bank.table import DOCUMENTS, Columns, Table, first_line, from_arrow
from nextvec.errors import DataError
from nextvec.vectors import as_float32

ROWS = 1_000  # rows that are Python objects at one time

Row = tuple[str, Mapping[str, Any]]  # how messages name it, and its values


def table_of(value: Any, where: str, scratch: Path | None = None, columns: Columns = DOCUMENTS) -> Table | None:
    """A table of an object that has rows in columns; None for other objects.

    Accepted are: objects with ``__arrow_c_stream__`` or ``__arrow_c_array__``
    (pandas, polars, pyarrow, DuckDB), scanners with ``schema`` and
    ``to_batches`` (pyarrow datasets, Lance), Hugging Face datasets, iterable
    ones included, a dict of columns, and objects with ``column_names`` that
    give columns by name.

    Args:
        scratch: a folder for an unnamed temporary file that keeps rows which can be read only once; None keeps them in memory.
        columns: those that are read.

    Raises:
        DataError: columns that do not fit or cannot be read, or several splits.
    """
    if isinstance(value, pa.Table):
        return from_arrow(value, where)
    if isinstance(value, Mapping):
        return _of_columns(value, where, columns)
    reader = _reader(value, where)
    if reader is not None:
        return from_arrow(_kept(reader.schema, reader, scratch, where), where)
    if hasattr(value, "column_names") and hasattr(value, "with_format"):
        return _of_dataset(value, where, scratch)
    names = getattr(value, "column_names", None)
    if isinstance(names, list) and hasattr(value, "__getitem__"):
        return _of_columns({str(name): value[name] for name in names}, where, columns)
    return None


def table_of_rows(rows: Iterable[Row], where: str, scratch: Path | None = None, columns: Columns = DOCUMENTS) -> Table:
    """A table of rows that are read once, each a mapping from column names.

    Raises:
        DataError: a value of a kind that its column cannot hold; names the row.
    """
    unknown: dict[str, None] = {}
    blocks = _blocks(rows, unknown, columns)
    first = next(blocks, None)
    if first is None:
        raise DataError(f"{where} holds no document")
    kept = from_arrow(_kept(first.schema, chain([first], blocks), scratch, where), where)
    # The schema also names the columns that are not read, so that a message can list them.
    return Table(
        where, pa.unify_schemas([kept.schema, pa.schema([(name, pa.null()) for name in unknown])]), kept.read, kept.rows
    )


def array_of(value: Any, where: str) -> np.ndarray:
    """A NumPy array of an array, a tensor, or lists of numbers.

    Raises:
        DataError: not an array of numbers, or some are masked.
    """
    if hasattr(value, "detach"):  # a torch tensor: NumPy refuses one that needs a gradient, lies on a device or is bfloat16
        value = value.detach().cpu()
        try:
            return value.numpy()
        except TypeError:
            return value.float().numpy()
    if np.ma.is_masked(value):
        raise DataError(f"{where}: {type(value).__name__} has masked values; leave them out or fill them")
    try:
        array = np.asarray([array_of(part, where) for part in value] if _holds_tensors(value) else value)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {type(value).__name__} is not an array of numbers: {first_line(error)}") from None
    return array


def ids_of(value: Any, where: str) -> list[str]:
    """Ids as strings: whole numbers of Python and NumPy are written in decimals.

    Raises:
        DataError: one that is neither a string nor a whole number; names its place.
    """
    try:
        held: list[Any] = value.to_pylist() if hasattr(value, "to_pylist") else list(value)
    except TypeError:
        raise DataError(f"{where}: ids are {type(value).__name__}; want one for every document") from None
    names = [name(entry) for entry in held]
    for place, found in enumerate(names):
        if found is None:
            raise DataError(f"{where}: id {place} is {held[place]!r}; want a string or a whole number")
    return [found for found in names if found is not None]


def name(value: Any) -> str | None:
    """An id or a title as a string, or None where it is neither a string nor a whole number."""
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of NumPy or torch
        value = value.item()
    if isinstance(value, str):
        return value
    return str(int(value)) if isinstance(value, Integral) and not isinstance(value, bool) else None


class _Exported:
    """An Arrow stream that was exported already."""

    def __init__(self, stream: object) -> None:
        self.stream = stream

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.stream


def _reader(value: Any, where: str) -> pa.RecordBatchReader | None:
    if hasattr(value, "__arrow_c_stream__"):
        try:
            exported = _Exported(value.__arrow_c_stream__())
        except (pa.ArrowException, TypeError, ValueError) as error:  # values of several kinds in a column
            # pyarrow's arguments name the value, then the column
            said = "; ".join(map(str, error.args)) or type(error).__name__
            raise DataError(f"{where} cannot be read: {said.splitlines()[0]}") from None
        try:
            return pa.RecordBatchReader.from_stream(exported)
        except pa.ArrowInvalid:  # one column, like a Series: its values can still be iterated over
            return None
    if hasattr(value, "__arrow_c_array__"):
        try:
            return pa.table(pa.record_batch(value)).to_reader()
        except (pa.ArrowException, TypeError, ValueError):
            return None
    if isinstance(getattr(value, "schema", None), pa.Schema) and hasattr(value, "to_batches"):
        return pa.RecordBatchReader.from_batches(value.schema, iter(value.to_batches()))
    return None


def _of_dataset(value: Any, where: str, scratch: Path | None) -> Table:
    """A Hugging Face dataset, read as Arrow: its selection and order are those that it shows."""
    tables: Iterator[pa.Table] = iter(value.with_format("arrow").iter(batch_size=ROWS))
    first = next(tables, None)
    if first is None:
        raise DataError(f"{where} holds no document")

    def batches() -> Iterator[pa.RecordBatch]:
        yield from first.to_batches()
        for table in tables:
            yield from table.cast(first.schema).to_batches()

    return from_arrow(_kept(first.schema, batches(), scratch, where), where)


def _of_columns(held: Mapping[Any, Any], where: str, columns: Columns) -> Table:
    if held and all(hasattr(part, "column_names") for part in held.values()):
        raise DataError(f"{where} holds the splits {', '.join(map(str, held))}; take one of them")
    names = [str(column) for column in held]
    known = {
        column: _column(values, column, where)
        for column, values in zip(names, held.values(), strict=True)
        if column in columns.known
    }
    lengths = {column: len(values) for column, values in known.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: columns differ in length: {', '.join(f'{c} {n:,}' for c, n in lengths.items())}")
    table = from_arrow(pa.table(known), where)
    others = [(column, pa.null()) for column in names if column not in columns.known]
    return Table(where, pa.schema([*table.schema, *others]), table.read, table.rows)


def _column(values: Any, column: str, where: str) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, str | bytes | Mapping):
        raise DataError(f"{where}: column {column!r} is {type(values).__name__}; want a list or an array of values")
    try:
        if hasattr(values, "__arrow_c_stream__"):
            return pa.chunked_array(values)
        if hasattr(values, "detach") or isinstance(values, np.ndarray):
            array = array_of(values, where)
            if array.ndim == 2:
                return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(array).reshape(-1)), array.shape[1])
            return indices(array) if array.dtype.kind == "O" else pa.array(with_arrow_unit(array))
        held = [array_of(value, where) if hasattr(value, "detach") or np.ma.is_masked(value) else value for value in values]
        return indices(held) if column in ("index", "time") else pa.array(held)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"{where}: column {column!r} cannot be read: {first_line(error)}") from None


def _blocks(rows: Iterable[Row], unknown: dict[str, None], wanted: Columns) -> Iterator[pa.RecordBatch]:
    """Record batches of the known columns; the first row decides which columns exist."""
    source = iter(rows)
    columns: dict[str, pa.DataType] = {}
    while block := list(islice(source, ROWS)):
        for where, row in block:
            unknown.update(dict.fromkeys(str(key) for key in row if key not in wanted.known))
            columns = columns or _kinds(row, where, wanted)
            if not columns:
                raise DataError(f"{where} has {', '.join(map(str, row)) or 'nothing'}; want {wanted.wanted}")
            added = [key for key in row if key in wanted.known and key not in columns]
            if added:
                raise DataError(f"{where} has {added[0]!r}, which the first row lacks; give it to every row or to none")
        named = [(_named(where, row), row) for where, row in block]
        arrays = [
            pa.array([_value(row.get(key), key, kind, where) for where, row in named], kind) for key, kind in columns.items()
        ]
        yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _named(where: str, row: Mapping[str, Any]) -> str:
    """A row in messages, with the document or the item that it names."""
    named = [f", {key} {row[key]!r}" for key in ("document", "item") if key in row]
    return where + "".join(named)


def _kinds(row: Mapping[str, Any], where: str, columns: Columns) -> dict[str, pa.DataType]:
    """The columns of the rows, taken from the first row; ids, titles and some others may come later."""
    kinds = {key: _kind(row[key], key, where) for key in columns.known if key in row}
    if not kinds:
        return kinds
    placed = bool({"document", "index", "vector"} & kinds.keys())
    later = [key for key in columns.later if key not in kinds and not (key == "id" and placed)]
    return kinds | {key: _kind(None, key, where) for key in later}


def _kind(value: Any, column: str, where: str) -> pa.DataType:
    if column == "vector":
        return pa.list_(pa.float32())
    if column == "time" and isinstance(value, str):
        return pa.large_string()
    if column in ("index", "time"):
        kind = index_kind(value)
        if kind is None:
            raise DataError(f"{where}: {column} is {value!r}; want a number, a date or a time")
        return kind
    return pa.int32() if column == "tokens" else pa.large_string()


def _value(value: Any, column: str, kind: pa.DataType, where: str) -> Any:
    """A value in the type of its column; a missing one stays None, and :func:`~nextvec.bank.table.order_of` refuses it."""
    if value is None:
        return None
    if column == "vector":
        array = array_of(value, where)
        if array.ndim != 1 or array.dtype.kind not in "fiu":
            raise DataError(
                f"{where}: the vector is {type(value).__name__} of shape {list(array.shape)}; want a list of numbers"
            )
        return as_float32(array[None])[0] if len(array) else array
    if column == "text":
        return _unicode(value, where) if isinstance(value, str) else _refused(value, column, "a string", where)
    if column in ("index", "time") and kind != pa.large_string():
        found = index_value(value, kind)
        return found if found is not None else _refused(value, column, f"{kind}, as in the first row", where)
    if column == "tokens":
        try:
            return (
                _refused(value, column, str(kind), where) if isinstance(value, bool | str) else pa.scalar(value, kind).as_py()
            )
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return _refused(value, column, f"{kind}, as in the first row", where)
    found = name(value)
    return _unicode(found, where) if found is not None else _refused(value, column, "a string or a whole number", where)


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a surrogate pair at character {error.start}; it is not Unicode text") from None
    return str(text)


def _refused(value: Any, column: str, wanted: str, where: str) -> Any:
    raise DataError(f"{where}: {column} is {type(value).__name__} {str(value)[:40]!r}; want {wanted}")


def _kept(schema: pa.Schema, batches: Iterable[pa.RecordBatch], scratch: Path | None, where: str) -> pa.Table:
    """A table of batches that can be read only once: in memory, or mapped from an unnamed file."""
    try:
        if scratch is None:
            return pa.Table.from_batches(list(batches), schema)
        with tempfile.TemporaryFile(dir=scratch) as file:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()
    except pa.ArrowException as error:
        raise DataError(f"{where} cannot be read: {first_line(error)}") from None


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and hasattr(value[0], "detach")
