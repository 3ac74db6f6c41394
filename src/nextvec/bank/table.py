"""Tables that can be read several times, and the order of their rows. Every source of rows is first converted to one."""

# Axes: N rows, D width, M documents.

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int64

from nextvec.errors import DataError

BATCH = 2_048  # rows read at once; decoding holds a wide vector column several times
VECTOR_COLUMNS = ("document", "index", "vector", "title", "text", "tokens", "encoder")
TEXT_COLUMNS = ("id", "document", "index", "title", "text")


@dataclass(frozen=True)
class Columns:
    """The columns that tables of one kind may have.

    Attributes:
        known: their names; other columns are not read.
        wanted: those that a row needs, in words, for a message.
        later: those that Python rows may begin to give after the first row.
    """

    known: tuple[str, ...]
    wanted: str
    later: tuple[str, ...] = ()


DOCUMENTS = Columns(
    tuple(dict.fromkeys((*TEXT_COLUMNS, *VECTOR_COLUMNS))), "'text', or 'vector', 'document' and 'index'", ("title", "id")
)
EVENTS = Columns(("session", "item", "index", "time"), "'session', 'item', and 'index' or 'time'")
ITEMS = Columns(("item", "vector", "text", "title", "encoder"), "'item', and 'vector' or 'text'", ("vector", "text", "title"))


@dataclass(frozen=True)
class Table:
    """A table of any origin.

    Attributes:
        where: its name in messages.
        schema: its columns.
        read: given column names, yields record batches of these columns, in the order of the rows. Every call starts at
            the first row.
        rows: number of rows, or None where it is known only after reading.
    """

    where: str
    schema: pa.Schema
    read: Callable[[Sequence[str]], Iterator[pa.RecordBatch]] = field(repr=False)
    rows: int | None = None

    @property
    def names(self) -> list[str]:
        return self.schema.names

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Record batches of at most ``BATCH`` rows.

        Raises:
            DataError: the source ends early, or cannot be decoded.
        """
        try:
            for batch in self.read(columns):
                for start in range(0, batch.num_rows, BATCH):
                    yield batch.slice(start, BATCH)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.where} cannot be read: {first_line(error)}") from None

    def columns_of(self, wanted: Sequence[str]) -> list[str]:
        """Those of ``wanted`` that the table has.

        Raises:
            DataError: a wanted column is there twice.
        """
        counts = Counter(self.names)
        twice = [name for name in wanted if counts[name] > 1]
        if twice:
            raise DataError(f"{self.where}: column {twice[0]!r} is there {counts[twice[0]]} times; keep one")
        return [name for name in wanted if name in counts]


@dataclass(frozen=True)
class Order:
    """Which rows make which document, in which order.

    Attributes:
        ids: [M], in the order of the bank.
        lengths: [M], rows of each.
        rows: [N], the row of the table at each place of the bank; None where the table already lies in that order.
    """

    ids: list[str]
    lengths: Int64[np.ndarray, " M"]
    rows: Int64[np.ndarray, " N"] | None


def from_arrow(table: pa.Table, where: str) -> Table:
    """A table that lies in memory, or is mapped into it."""

    def read(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        yield from table.select(list(columns)).to_batches()

    return Table(where, table.schema, read, table.num_rows)


def order_of(table: Table, as_they_come: bool = False, group: str = "document", place: str = "index") -> Order:
    """Read the two columns alone, and order the rows by them.

    Documents are ordered by id, compared as strings; ``as_they_come`` orders
    them by their first row. ``place`` may be whole numbers, floats, dates or
    times, and must be given for every row. An ``index`` must differ within a
    document; rows of one ``time`` keep their order in the table.

    Args:
        group: the column that names the document of a row.
        place: the column that orders the rows of a document, ``index`` or ``time``.

    Raises:
        DataError: a column or a value is missing or of another kind, or an index appears twice in a document.
    """
    for name in (group, place):
        if name not in table.names:
            raise DataError(
                f"{table.where}: no column {name!r}; columns are {', '.join(table.names)}; add it to give the order"
            )
    names: list[pa.Array] = []
    places: list[np.ndarray] = []
    row = 0
    for batch in table.batches([group, place]):
        names.append(strings(batch.column(group), group, table.where, row).dictionary_encode())
        places.append(numbers_of(batch.column(place), place, table.where, row))
        row += batch.num_rows
    if not row:
        raise DataError(f"{table.where} holds no row")
    encoded = pa.chunked_array(names).unify_dictionaries()
    held: list[str] = encoded.chunk(0).dictionary.to_pylist()
    member = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks]).astype(np.int64)
    # The dictionary is in order of first appearance.
    ordered = list(range(len(held))) if as_they_come else sorted(range(len(held)), key=held.__getitem__)
    rank = np.empty(len(held), np.int64)
    rank[ordered] = np.arange(len(held))
    ids = [held[m] for m in ordered]
    lengths = np.bincount(member, minlength=len(ids)).astype(np.int64)[ordered]
    return Order(ids, lengths, _sorted(table, ids, rank[member], np.concatenate(places), (group, place)))


def strings(column: pa.Array, name: str, where: str, first_row: int, missing: bool = False, numbers: bool = True) -> pa.Array:
    """A column of strings or, where ``numbers`` are allowed, of whole numbers, as strings.

    Raises:
        DataError: another type, or, unless ``missing`` values are allowed, a null; names the row.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (text or (numbers and pa.types.is_integer(kind)) or pa.types.is_null(kind)):
        raise DataError(f"{where}: column {name!r} is {column.type}; want strings{' or whole numbers' if numbers else ''}")
    if column.null_count and not missing:
        raise DataError(f"{where}, row {first_row + _first_null(column)}: no {name}; give every row one")
    return column.cast(pa.large_string())


def one_title(titles: Iterable[str | None], document: str, where: str) -> str:
    """The title that the rows of a document agree on; its id where they have none.

    Raises:
        DataError: two titles.
    """
    found = list(dict.fromkeys(title for title in titles if title is not None))
    if len(found) > 1:
        raise DataError(
            f"{where}: document {document!r} has titles {found[0]!r} and {found[1]!r}; "
            "a title belongs to a document; put what belongs to a row into 'text'"
        )
    return found[0] if found else document


def matrix(
    column: pa.Array, names: pa.Array, where: str, first_row: int | None, width: int | None, kind: str = "document"
) -> Float[np.ndarray, "N D"]:
    """A column of vectors as one array, without a Python object per number.

    Args:
        names: [N] strings, to name a document or an item in messages.
        first_row: the row of the table that the batch begins with; None to leave row numbers out of messages.
        width: D where earlier batches have decided it.
        kind: what the names name.

    Raises:
        DataError: a vector or a number in it is missing, a vector is wider or narrower than the first; names them.
    """

    def named(row: int) -> str:
        place = "" if first_row is None else f", row {first_row + row}"
        return f"{where}, {kind} {names[row].as_py()!r}{place}"

    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if column.null_count:
        raise DataError(f"{named(_first_null(column))}: the vector is missing; leave the row out or give it one")
    if not _is_list(column.type):
        raise DataError(f"{where}: column 'vector' is {column.type}; want lists of numbers")
    widths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
    wanted = width if width is not None else int(widths[0]) if len(widths) else 0
    if (widths != wanted).any():
        row = int((widths != wanted).argmax())
        raise DataError(
            f"{named(row)}: the vector has {widths[row]} numbers where the first has {wanted}; all must be equally wide"
        )
    if not wanted:
        raise DataError(f"{named(0)}: the vector is empty")
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{named(_first_null(values) // wanted)}: a number of the vector is missing")
    return _floats(values, where).reshape(-1, wanted)


def first_line(error: BaseException) -> str:
    """The message of ``error`` up to its first line break, or its kind where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_list(kind: pa.DataType) -> bool:
    tests = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
    return any(getattr(pa.types, test)(kind) for test in tests)


def _floats(values: pa.Array, where: str) -> np.ndarray:
    kind = values.type
    if pa.types.is_floating(kind):
        return values.to_numpy()
    if pa.types.is_integer(kind):
        return values.to_numpy().astype(np.float64)
    if pa.types.is_decimal(kind):
        return values.cast(pa.float64()).to_numpy()
    raise DataError(f"{where}: column 'vector' holds {kind}; want numbers")


def numbers_of(column: pa.Array, name: str, where: str, first_row: int) -> np.ndarray:
    """The column ``index`` or ``time`` as numbers of the same order.

    Raises:
        DataError: missing, not a number, or neither number nor time.
    """
    if name == "time":
        column = dated(column, where, first_row)
    kind: Any = column.type
    if column.null_count:
        raise DataError(f"{where}, row {first_row + _first_null(column)}: no {name}; give every row one")
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return column.cast(pa.int64() if kind.bit_width == 64 else pa.int32()).to_numpy().astype(np.int64)
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(f"{where}: column {name!r} is {kind}; want numbers, dates or times")
    place = column.to_numpy()
    if place.dtype.kind == "f" and np.isnan(place).any():
        raise DataError(f"{where}, row {first_row + int(np.isnan(place).argmax())}: {name} is not a number")
    return place


def dated(times: pa.Array, where: str, first_row: int) -> pa.Array:
    """Times of text, such as ``2026-01-31T12:00:00Z``, as timestamps; a column of another type as it is.

    Raises:
        DataError: text that is not a time in ISO 8601.
    """
    kind = times.type.value_type if pa.types.is_dictionary(times.type) else times.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return times
    text = times.cast(pa.string())
    for zone in ("UTC", None):  # text with a time zone, and text without one
        try:
            return text.cast(pa.timestamp("us", zone))
        except pa.ArrowInvalid as error:
            said = first_line(error)
    raise DataError(f"{where}, rows from {first_row}: a time is not a number or ISO 8601: {said}")


def _sorted(
    table: Table, ids: list[str], member: np.ndarray, place: np.ndarray, keys: tuple[str, str]
) -> Int64[np.ndarray, " N"] | None:
    """The order of the rows by document and place, or None where they lie in it; rows of one time keep their order."""
    group, name = keys
    same, ties = member[1:] == member[:-1], name == "time"
    rises = place[1:] >= place[:-1] if ties else place[1:] > place[:-1]
    if ((member[1:] > member[:-1]) | (same & rises)).all():
        return None
    order = np.lexsort((place, member)).astype(np.int64)
    if ties:
        return order
    twice = (member[order[1:]] == member[order[:-1]]) & (place[order[1:]] == place[order[:-1]])
    if twice.any():
        row = int(order[1:][twice][0])
        value = _value(table, row, name)
        raise DataError(
            f"{table.where}: {group} {ids[member[row]]!r} has {name} {value} twice; give each row of a {group} its own {name}"
        )
    return order


def _value(table: Table, row: int, column: str) -> Any:
    """The value of one row as it was given; only for a message."""
    for batch in table.batches([column]):
        if row < batch.num_rows:
            return batch.column(column)[row]
        row -= batch.num_rows
    raise DataError(f"{table.where} changed while it was read")


def _first_null(column: pa.Array) -> int:
    return int(np.asarray(column.is_null()).argmax())
