"""The rows of a ledger, linked by hashes: read, append, verify, export. All functions run inside a transaction."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from nextvec.rollout.database import Database
from nextvec.rollout.records import REPAIR, Entry, LedgerError, Row, canonical
from nextvec.rollout.schema import GENESIS


def head(database: Database, lock: bool = False) -> tuple[int, str]:
    """Number and hash of the last row."""
    query = "SELECT seq, hash FROM head WHERE one = 1"
    with database.reading("the head"):
        seq, last = typed(database.run_locked(query) if lock else database.run(query), int, str)
        return seq, last


def fetch(database: Database, seq: int) -> Row:
    """
    Raises:
        LedgerError: the row is missing or cannot be read.
    """
    with database.reading(f"row {seq}"):
        return parsed(database.run("SELECT * FROM ledger WHERE seq = ?", seq))


def append(database: Database, rollout: str, epoch: int, entry: Entry) -> None:
    """Write a row and the state that it makes. No other statement changes a state."""
    seq, prev_hash = head(database, lock=True)
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    content = (entry.before, entry.after, entry.cause, entry.evidence, entry.actor)
    unsigned = Row(seq + 1, rollout, epoch, *content, time, prev_hash, "")
    signature = unsigned.content_hash()
    values = (*content[:3], canonical(entry.evidence), entry.actor, time, prev_hash, signature)
    database.run("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", seq + 1, rollout, epoch, *values)
    database.run("UPDATE head SET seq = ?, hash = ? WHERE one = 1", seq + 1, signature)
    query = "UPDATE rollouts SET state = ?, epoch = ?, active = ?, watched = 0, last_unit = 0 WHERE rollout = ?"
    database.run(query, entry.after, epoch, 0 if entry.ends else 1, rollout)


def verify(database: Database) -> int:
    """Follow the chain from the first row to the states; the number of rows.

    Raises:
        LedgerError: names the first row that differs from what was written.
    """
    last: dict[str, Row] = {}
    count, head_hash = head(database)
    prev_hash = GENESIS
    for seq in range(1, count + 1):
        row = fetch(database, seq)
        if fault := _fault(row, prev_hash, last.get(row.rollout)):
            raise LedgerError(f"{database.where}: row {seq} {fault}; {REPAIR}")
        last[row.rollout], prev_hash = row, row.hash
    database.check_storage()
    if prev_hash != head_hash or database.run("SELECT 1 FROM ledger WHERE seq > ?", count):
        raise LedgerError(f"{database.where}: the head is not the last row; {REPAIR}")
    _check_states(database, last)
    return count


def export(database: Database) -> Iterator[dict[str, Any]]:
    """Every row as JSON-able values, also of a damaged ledger; an unreadable row is reported in its place."""
    for seq in range(1, _last_seq(database) + 1):
        try:
            yield fetch(database, seq).to_json()
        except LedgerError as error:
            yield {"seq": seq, "damaged": str(error)}


def parsed(found: list[tuple[Any, ...]]) -> Row:
    """The row that a query found.

    Raises:
        ValueError: the values are not a row.
    """
    seq, rollout, epoch, before, after, cause, evidence, *signed = typed(found, int, str, int, *[str] * 8)
    return Row(seq, rollout, epoch, before, after, cause, json.loads(evidence), *signed)


def typed(found: list[tuple[Any, ...]], *kinds: type) -> tuple[Any, ...]:
    """The first of the rows that a query found.

    Raises:
        ValueError: there is none, or a value has another type.
    """
    if not found:
        raise ValueError("it is missing")
    if not all(isinstance(value, kind) for value, kind in zip(found[0], kinds, strict=True)):
        raise ValueError("a value has the wrong type")
    return found[0]


def _last_seq(database: Database) -> int:
    """The number of the last row: from the head, or from the rows if the head is lost."""
    try:
        return head(database)[0]
    except LedgerError:
        return database.run("SELECT coalesce(max(seq), 0) FROM ledger")[0][0]


def _check_states(database: Database, last: dict[str, Row]) -> None:
    """Compare the state of each rollout with its last row."""
    stored = {name: (epoch, state) for name, epoch, state in database.run("SELECT rollout, epoch, state FROM rollouts")}
    for name in sorted(stored.keys() | last.keys()):
        row = last.get(name)
        if row is None or stored.get(name) != (row.epoch, row.after):
            expected = f"that of row {row.seq}" if row else "that of any row"
            raise LedgerError(f"{database.where}: the state of rollout {name!r} is not {expected}; {REPAIR}")


def _fault(row: Row, prev_hash: str, earlier: Row | None) -> str | None:
    """What is wrong with a row, given the row before it and the earlier row of its rollout; None if nothing is."""
    if row.prev_hash != prev_hash:
        return "is not linked to the row before it"
    if row.hash != row.content_hash():
        return "is not what was written"
    epoch, state = (earlier.epoch, earlier.after) if earlier else (0, row.before)
    if row.epoch != epoch + 1 or row.before != state:
        return f"does not follow epoch {epoch} of rollout {row.rollout!r}"
    return None
