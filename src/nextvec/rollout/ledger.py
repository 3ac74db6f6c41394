"""The ledger of rollouts: rows linked by hashes, and the state that follows from them, in SQLite or PostgreSQL.

Every change of a rollout is one transaction: a row is appended, linked to the row before it, and the state is set. A writer
names the epoch on which it decided and its fencing token; if either is outdated, nothing is written (Kleppmann 2016, "How to do
distributed locking"). Reports of routers are stored in the same database and consumed by the transaction that judges them, so a
crash neither loses nor repeats an outcome.

Machines do not compare clocks. The holder of a rollout counts heartbeats; an observer measures on its own monotonic clock when
it last saw the count change, as in the leader election of Kubernetes (client-go, ``leaderelection``). A change of a wall clock
has no effect. ``time`` in a row is for people.

Limit: the ledger cannot detect that its file was replaced by an older copy.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

from nextvec.errors import ServingError
from nextvec.rollout import chain
from nextvec.rollout.database import Database
from nextvec.rollout.records import ConflictError, Decide, Entry, Record, Row, canonical


class Ledger:
    """Rollouts, their rows and their reports. Thread-safe.

    Every method raises :class:`~nextvec.rollout.records.LedgerError` if the database cannot be read or written.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    @property
    def where(self) -> str:
        """Name of the database, for messages."""
        return self.database.where

    def create(self, rollout: str, route: str, entry: Entry, evidence: Any = None) -> Record:
        """A new rollout with its first row. Reports will be added to ``evidence``.

        Raises:
            ConflictError: the id is taken, or the route has an active rollout.
        """
        database = self.database
        with database.transaction():
            chain.head(database, lock=True)
            if database.run("SELECT 1 FROM rollouts WHERE rollout = ?", rollout):
                raise ConflictError(f"rollout {rollout!r} exists; choose another id")
            if busy := database.run("SELECT rollout FROM rollouts WHERE route = ? AND active = 1", route):
                raise ConflictError(f"route {route!r} has the active rollout {busy[0][0]!r}; end it first")
            values = (rollout, route, 1, 0, entry.before, "", 0, 0, 0.0, 0.0, canonical(evidence))
            database.run("INSERT INTO rollouts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *values)
            chain.append(database, rollout, 1, entry)
            return self._record(rollout)

    def record(self, rollout: str) -> Record:
        """
        Raises:
            ServingError: there is no such rollout.
        """
        with self.database.transaction(write=False):
            return self._record(rollout)

    def active(self, route: str) -> Record | None:
        """The active rollout of a route."""
        with self.database.transaction(write=False):
            found = self.database.run("SELECT rollout FROM rollouts WHERE route = ? AND active = 1", route)
            return self._record(found[0][0]) if found else None

    def rows(self, rollout: str | None = None) -> list[Row]:
        """All rows, or those of one rollout, in order."""
        database = self.database
        with database.transaction(write=False):
            if rollout is None:
                return [chain.fetch(database, seq) for (seq,) in database.run("SELECT seq FROM ledger ORDER BY seq")]
            query = "SELECT seq FROM ledger WHERE rollout = ? ORDER BY seq"
            return [chain.fetch(database, seq) for (seq,) in database.run(query, rollout)]

    def acquire(self, seen: Record, holder: str) -> int:
        """Become the holder of a rollout that has not changed since ``seen``; the fencing token.

        Raises:
            ConflictError: the rollout has a new holder, or the old one is alive.
        """
        rollout = seen.row.rollout
        with self.database.transaction():
            now = self._record(rollout, lock=True)
            if (now.token, now.beat) != (seen.token, seen.beat):
                raise ConflictError(f"rollout {rollout!r} is held by {now.holder!r}; wait until it stops")
            query = "UPDATE rollouts SET holder = ?, token = token + 1, beat = beat + 1 WHERE rollout = ?"
            self.database.run(query, holder, rollout)
            return now.token + 1

    def release(self, rollout: str, token: int) -> None:
        """Release a rollout, so that another controller need not wait; no effect with an outdated token."""
        with self.database.transaction():
            self.database.run("UPDATE rollouts SET holder = '' WHERE rollout = ? AND token = ?", rollout, token)

    def tick(self, rollout: str, token: int, decide: Decide) -> Record:
        """One tick of the holder: count a heartbeat, consume the reports, decide, and write the decision.

        Raises:
            ConflictError: the token is outdated; another holder has taken over.
        """
        database = self.database
        with database.transaction():
            record = self._record(rollout, lock=True)
            if record.token != token:
                raise ConflictError(f"token {token} of rollout {rollout!r} is stale: {record.holder!r} holds {record.token}")
            taken = database.run("DELETE FROM reports WHERE rollout = ? RETURNING router, batch, body", rollout)
            decision = decide(record, [json.loads(body) for _, _, body in sorted(taken)])
            query = "UPDATE rollouts SET beat = beat + 1, watched = ?, last_unit = ?, evidence = ? WHERE rollout = ?"
            database.run(query, decision.watched, decision.last_unit, canonical(decision.evidence), rollout)
            if decision.entry is not None:
                chain.append(database, rollout, record.epoch + 1, decision.entry)
            return self._record(rollout)

    def intervene(self, rollout: str, decide: Callable[[Record], Entry | None], epoch: int | None = None) -> Record:
        """A change by a person. It needs no token, because it must be possible without a controller.

        Raises:
            ConflictError: the rollout is not in the epoch that the person saw.
        """
        with self.database.transaction():
            record = self._record(rollout, lock=True)
            if epoch is not None and record.epoch != epoch:
                raise ConflictError(f"rollout {rollout!r} is {record.state} in epoch {record.epoch}, not in epoch {epoch}")
            if (entry := decide(record)) is not None:
                chain.append(self.database, rollout, record.epoch + 1, entry)
            return self._record(rollout)

    def exchange(self, rollout: str, router: str, epoch: int, batch: int = 0, report: Any = None) -> Record:
        """A router's poll: store the epoch that it uses and its report; the present record.

        Each router numbers its reports from 1. A report with a known number is ignored, so a router that got no answer sends
        the same report again.
        """
        database = self.database
        with database.transaction():
            query = "INSERT INTO routers VALUES (?, ?, ?, 0) ON CONFLICT (rollout, router) DO UPDATE SET epoch = excluded.epoch"
            database.run(query, rollout, router, epoch)
            known = database.run("SELECT batch FROM routers WHERE rollout = ? AND router = ?", rollout, router)[0][0]
            record = self._record(rollout)
            if batch > known and record.active:
                database.run("INSERT INTO reports VALUES (?, ?, ?, ?)", rollout, router, batch, canonical(report))
                database.run("UPDATE routers SET batch = ? WHERE rollout = ? AND router = ?", batch, rollout, router)
            return record

    def leave(self, rollout: str, router: str) -> None:
        """Remove a router; a rollback no longer waits for it."""
        with self.database.transaction():
            self.database.run("DELETE FROM routers WHERE rollout = ? AND router = ?", rollout, router)

    def verify(self) -> int:
        """Follow the chain from the first row to the states; the number of rows.

        Raises:
            LedgerError: names the first row that differs from what was written.
        """
        with self.database.transaction(write=False):
            return chain.verify(self.database)

    def export(self) -> Iterator[dict[str, Any]]:
        """Every row as JSON-able values, also of a damaged ledger; an unreadable row is reported in its place."""
        with self.database.transaction(write=False):
            yield from chain.export(self.database)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def _record(self, rollout: str, lock: bool = False) -> Record:
        database = self.database
        query = "SELECT route, active, epoch, holder, token, beat, watched, last_unit, evidence FROM rollouts WHERE rollout = ?"
        found = database.run_locked(query, rollout) if lock else database.run(query, rollout)
        if not found:
            raise ServingError(f"{self.where} has no rollout {rollout!r}")
        with database.reading(f"rollout {rollout!r}"):
            kinds = (str, int, int, str, int, int, float, float, str)
            route, active, epoch, holder, token, beat, watched, last_unit, evidence = chain.typed(found, *kinds)
            row = chain.parsed(database.run("SELECT * FROM ledger WHERE rollout = ? AND epoch = ?", rollout, epoch))
            slowest = database.run("SELECT min(epoch) FROM routers WHERE rollout = ?", rollout)[0][0]
            return Record(row, route, bool(active), holder, token, beat, watched, last_unit, json.loads(evidence), slowest)
