"""The events of a table as sequences: sessions ordered by index or time, each event with the number of its item."""

# Axes: N events, M sessions.

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Shaped

from nextvec.bank.layout import TimeDtype
from nextvec.bank.ready_vectors import provenance_of
from nextvec.bank.sequences import Sequences
from nextvec.bank.table import EVENTS, Order, Table, dated, numbers_of, order_of, strings
from nextvec.errors import DataError

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Sessions:
    """Sessions in the order of the bank.

    Attributes:
        ids: [M] of the sessions.
        sequences: the items of all events, and their times where the table has them.
        digest: of all of it.
    """

    ids: list[str]
    sequences: Sequences
    digest: str

    @staticmethod
    def read(events: Table, items: list[str], catalogue: str) -> "Sessions":
        """Read the events of a table; their keys are held in memory as numbers.

        Args:
            items: ids of the items, in the order of their numbers.
            catalogue: name of the table of the items, for messages.

        Raises:
            DataError: a column or a value is missing, or an item that is not among the items.
        """
        for name in ("session", "item"):
            if name not in events.names:
                raise DataError(_missing(events, name))
        events.columns_of(EVENTS.known)
        place = next((name for name in ("index", "time") if name in events.names), None)
        if place is None:
            raise DataError(_missing(events, "index' or 'time"))
        order = order_of(events, provenance_of(events).as_they_come, "session", place)
        ids, times = _columns(events, items, catalogue)
        if order.rows is not None:
            ids, times = ids[order.rows], None if times is None else times[order.rows]
        return _sessions(order, ids, times)


def _sessions(order: Order, ids: np.ndarray, times: np.ndarray | None) -> Sessions:
    offsets = np.concatenate([[0], np.cumsum(order.lengths)]).astype(np.int64)
    digest = hashlib.sha256(repr(order.ids).encode() + offsets.tobytes() + ids.tobytes())
    digest.update(b"" if times is None else times.tobytes())
    return Sessions(order.ids, Sequences(offsets, ids, times), digest.hexdigest())


def _missing(events: Table, name: str) -> str:
    return f"{events.where}: no column '{name}'; columns are {', '.join(events.names)}; want {EVENTS.wanted}"


def _columns(events: Table, items: list[str], catalogue: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The item and the time of each event, in the order of the table."""
    known = pa.array(items, pa.large_string())
    timed = "time" in events.names
    ids: list[np.ndarray] = []
    times: list[np.ndarray] = []
    row = 0
    for batch in events.batches(["item", "time"] if timed else ["item"]):
        named = strings(batch.column("item"), "item", events.where, row)
        found = pc.call_function("index_in", [named], pc.SetLookupOptions(known))
        if found.null_count:
            at = int(np.asarray(found.is_null()).argmax())
            name = named[at].as_py()
            raise DataError(
                f"{events.where}, row {row + at}: item {name!r} is not in {catalogue}; add it, or leave its events out"
            )
        ids.append(found.to_numpy().astype(np.int32))
        if timed:
            times.append(_seconds(batch.column("time"), events.where, row))
        row += batch.num_rows
    return np.concatenate(ids), _smallest(np.concatenate(times)) if timed else None


def _seconds(column: pa.Array, where: str, row: int) -> Shaped[np.ndarray, " N"]:
    """Times as numbers: dates, times and durations in seconds, numbers as they are."""
    column = dated(column, where, row)
    kind: Any = column.type
    numbers = numbers_of(column, "time", where, row)
    if not pa.types.is_temporal(kind):
        return numbers
    if pa.types.is_date32(kind):
        return numbers * 86_400
    per_second = PER_SECOND["ms" if pa.types.is_date64(kind) else kind.unit]
    return numbers / per_second if (numbers % per_second).any() else numbers // per_second


def _smallest(times: Shaped[np.ndarray, " N"]) -> Shaped[np.ndarray, " N"]:
    """The times in the smallest dtype of a bank that holds them."""
    if times.dtype.kind == "f":
        return times.astype(np.float64)
    fits = int(times.min()) >= 0 and int(times.max()) < 2**32
    return times.astype(np.uint32 if fits else np.int64)


def time_dtype(sequences: Sequences) -> TimeDtype | None:
    """The dtype of the times, for the manifest."""
    names: dict[str, TimeDtype] = {"uint32": "uint32", "int64": "int64", "float64": "float64"}
    return None if sequences.times is None else names[sequences.times.dtype.name]
