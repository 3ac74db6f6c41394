"""The ledger of rollouts: hash-chained rows and the state they add up to, in SQLite or PostgreSQL.

Every change of a rollout is one transaction: a row is appended, linked to the row before it, and the state is set. A writer
names the epoch it decided on and the fencing token it holds; where either is no longer the ledger's, nothing is written
(Kleppmann 2016, "How to do distributed locking"). What routers report waits in the same database and is consumed by the
transaction that judges it, so a crash neither loses nor repeats an event.

No clock is shared. The holder of a rollout counts ``beat`` up; whoever watches measures, on a monotonic clock of its own, how
long ago it saw the beat change, as leader election in Kubernetes does (client-go, ``leaderelection``). So a jump of the wall
clock, of the database's included, is nobody's business, and clocks need to agree only on how long a second is. ``time`` is
for people.

What this cannot see: a file replaced whole by an older copy of itself.
"""

import hashlib
import itertools
import json
import os
import signal
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nextvec.errors import ServingError

GENESIS = "0" * 64
BUSY_SECONDS = 5  # how long a transaction waits for another one
STALLED_SECONDS = 15  # after which PostgreSQL ends a transaction whose process has stopped
FAILPOINT = "NEXTVEC_FAILPOINT"

_TABLES = (
    "CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL)",
    "CREATE TABLE ledger (seq INTEGER PRIMARY KEY, rollout TEXT NOT NULL, epoch INTEGER NOT NULL, "
    "before TEXT NOT NULL, after TEXT NOT NULL, cause TEXT NOT NULL, evidence TEXT NOT NULL, actor TEXT NOT NULL, "
    "time TEXT NOT NULL, prev_hash TEXT NOT NULL, hash TEXT NOT NULL, UNIQUE (rollout, epoch))",
    "CREATE TABLE rollouts (rollout TEXT PRIMARY KEY, route TEXT NOT NULL, active INTEGER NOT NULL, "
    "epoch INTEGER NOT NULL, state TEXT NOT NULL, holder TEXT NOT NULL, token INTEGER NOT NULL, beat INTEGER NOT NULL, "
    "watched DOUBLE PRECISION NOT NULL, heard DOUBLE PRECISION NOT NULL, evidence TEXT NOT NULL)",
    "CREATE UNIQUE INDEX one_active ON rollouts (route) WHERE active = 1",
    "CREATE TABLE routers (rollout TEXT NOT NULL, router TEXT NOT NULL, epoch INTEGER NOT NULL, "
    "batch INTEGER NOT NULL, PRIMARY KEY (rollout, router))",
    "CREATE TABLE reports (rollout TEXT NOT NULL, router TEXT NOT NULL, batch INTEGER NOT NULL, "
    "body TEXT NOT NULL, PRIMARY KEY (rollout, router, batch))",
    "INSERT INTO head VALUES (1, 0, ?)",
)
_ADVICE = "restore a copy, or read what is left with export"
_LEAST_FILE = 512  # bytes; SQLite takes anything shorter for an empty database


class ConflictError(ServingError):
    """A change that the present state does not allow, or that another writer was faster than."""


class LedgerError(ServingError):
    """A ledger that cannot be written or read, or whose rows are not what was written."""


@dataclass(frozen=True)
class Entry:
    """A change before it is written.

    Attributes:
        before, after: names of the states.
        cause: why, in words.
        evidence: JSON-able; what the decision rested on.
        actor: who decided: a person's key, or the controller.
        ends: ``after`` is terminal, so that the route is free for another rollout.
    """

    before: str
    after: str
    cause: str
    evidence: Any
    actor: str
    ends: bool = False


@dataclass(frozen=True)
class Row:
    """A change as it was written. ``hash`` is SHA-256 over everything else, ``prev_hash`` the row before it included."""

    seq: int
    rollout: str
    epoch: int
    before: str
    after: str
    cause: str
    evidence: Any
    actor: str
    time: str
    prev_hash: str
    hash: str

    def content_hash(self) -> str:
        parts = [self.seq, self.rollout, self.epoch, self.before, self.after, self.cause, _text(self.evidence)]
        return hashlib.sha256(_text([*parts, self.actor, self.time, self.prev_hash]).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        values = {**self.__dict__, "from": self.before, "to": self.after}
        order = ["seq", "rollout", "epoch", "from", "to", "cause", "evidence", "actor", "time", "prev_hash", "hash"]
        return {name: values[name] for name in order}


@dataclass(frozen=True)
class Record:
    """A rollout as it stands.

    Attributes:
        row: the last one, which made the present state.
        route: what it is a rollout of; active: not ended.
        holder, token: who drives it, and the fencing token it was given; ``""`` where it was let go.
        beat: counted up by every turn of the holder.
        watched: seconds that a holder has watched the present state; heard: the same, when last a unit arrived.
        evidence: JSON-able, with every report folded in so far.
        slowest: the oldest epoch that a router still holds; None where there is no router.
    """

    row: Row
    route: str
    active: bool
    holder: str
    token: int
    beat: int
    watched: float
    heard: float
    evidence: Any
    slowest: int | None

    @property
    def epoch(self) -> int:
        return self.row.epoch

    @property
    def state(self) -> str:
        return self.row.after


@dataclass(frozen=True)
class Turn:
    """What a decision makes of a record: new sums, and a change or none."""

    watched: float
    heard: float
    evidence: Any
    entry: Entry | None


Decide = Callable[[Record, list[Any]], Turn]
"""Called inside the transaction with the record and the reports that came since; pure, for it may be called again."""


class Ledger(ABC):
    """Rollouts, their rows and their reports. One object may be used by several threads.

    Every method raises :class:`LedgerError` where the database cannot be read or written.
    """

    where: str

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def create(self, rollout: str, route: str, entry: Entry, evidence: Any = None) -> Record:
        """A new rollout, as its first row, with the evidence that reports will be folded into.

        Raises:
            ConflictError: the id is taken, or the route has an active rollout.
        """
        with self._transaction():
            self._head(lock=True)
            if self._run("SELECT 1 FROM rollouts WHERE rollout = ?", rollout):
                raise ConflictError(f"rollout {rollout!r} exists; choose another id")
            if busy := self._run("SELECT rollout FROM rollouts WHERE route = ? AND active = 1", route):
                raise ConflictError(f"route {route!r} has rollout {busy[0][0]!r} under way; end it first")
            values = (rollout, route, 1, 0, entry.before, "", 0, 0, 0.0, 0.0, _text(evidence))
            self._run("INSERT INTO rollouts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *values)
            self._append(rollout, 1, entry)
            return self._record(rollout)

    def record(self, rollout: str) -> Record:
        """
        Raises:
            ServingError: there is no such rollout.
        """
        with self._transaction(write=False):
            return self._record(rollout)

    def active(self, route: str) -> Record | None:
        """The rollout under way on a route."""
        with self._transaction(write=False):
            found = self._run("SELECT rollout FROM rollouts WHERE route = ? AND active = 1", route)
            return self._record(found[0][0]) if found else None

    def rows(self, rollout: str | None = None) -> list[Row]:
        """All rows, or one rollout's, in order."""
        with self._transaction(write=False):
            if rollout is None:
                return [self._fetch(seq) for (seq,) in self._run("SELECT seq FROM ledger ORDER BY seq")]
            query = "SELECT seq FROM ledger WHERE rollout = ? ORDER BY seq"
            return [self._fetch(seq) for (seq,) in self._run(query, rollout)]

    def acquire(self, seen: Record, holder: str) -> int:
        """Become the holder of a rollout that has not changed since it was ``seen``; the fencing token.

        Raises:
            ConflictError: it has a new holder, or the old one is alive.
        """
        rollout = seen.row.rollout
        with self._transaction():
            now = self._record(rollout, lock=True)
            if (now.token, now.beat) != (seen.token, seen.beat):
                raise ConflictError(f"rollout {rollout!r} is driven by {now.holder!r}; wait until it stops")
            query = "UPDATE rollouts SET holder = ?, token = token + 1, beat = beat + 1 WHERE rollout = ?"
            self._run(query, holder, rollout)
            return now.token + 1

    def release(self, rollout: str, token: int) -> None:
        """Let go, so that another need not wait; nothing where the token is no longer the ledger's."""
        with self._transaction():
            self._run("UPDATE rollouts SET holder = '' WHERE rollout = ? AND token = ?", rollout, token)

    def turn(self, rollout: str, token: int, decide: Decide) -> Record:
        """One turn of the holder: count the beat up, consume the reports, decide, and write what was decided.

        Raises:
            ConflictError: the token is not the ledger's; another holder has taken over.
        """
        failpoint("before_begin")
        with self._transaction():
            record = self._record(rollout, lock=True)
            if record.token != token:
                raise ConflictError(f"token {token} of rollout {rollout!r} is stale: {record.holder!r} holds {record.token}")
            taken = self._run("DELETE FROM reports WHERE rollout = ? RETURNING router, batch, body", rollout)
            turn = decide(record, [json.loads(body) for _, _, body in sorted(taken)])
            query = "UPDATE rollouts SET beat = beat + 1, watched = ?, heard = ?, evidence = ? WHERE rollout = ?"
            self._run(query, turn.watched, turn.heard, _text(turn.evidence), rollout)
            if turn.entry is not None:
                self._append(rollout, record.epoch + 1, turn.entry)
                failpoint("before_commit")
            after = self._record(rollout)
        if turn.entry is not None:
            failpoint("after_commit")
        return after

    def intervene(self, rollout: str, decide: Callable[[Record], Entry | None], epoch: int | None = None) -> Record:
        """A change by a person, which needs no token: it must be possible while no controller lives.

        Raises:
            ConflictError: the rollout is not in the epoch that the person saw.
        """
        with self._transaction():
            record = self._record(rollout, lock=True)
            if epoch is not None and record.epoch != epoch:
                raise ConflictError(f"rollout {rollout!r} is {record.state} in epoch {record.epoch}, not in epoch {epoch}")
            if (entry := decide(record)) is not None:
                self._append(rollout, record.epoch + 1, entry)
            return self._record(rollout)

    def exchange(self, rollout: str, router: str, epoch: int, batch: int = 0, report: Any = None) -> Record:
        """What a router does once in a while: say which epoch it routes by, deliver a report, learn how things stand.

        Reports are numbered from 1 by each router. One that has arrived before is not taken again, so a router that does not
        know whether it was heard sends the same once more.
        """
        failpoint("before_ack")
        with self._transaction():
            query = "INSERT INTO routers VALUES (?, ?, ?, 0) ON CONFLICT (rollout, router) DO UPDATE SET epoch = excluded.epoch"
            self._run(query, rollout, router, epoch)
            known = self._run("SELECT batch FROM routers WHERE rollout = ? AND router = ?", rollout, router)[0][0]
            record = self._record(rollout)
            if batch > known and record.active:
                self._run("INSERT INTO reports VALUES (?, ?, ?, ?)", rollout, router, batch, _text(report))
                self._run("UPDATE routers SET batch = ? WHERE rollout = ? AND router = ?", batch, rollout, router)
            return record

    def leave(self, rollout: str, router: str) -> None:
        """A router that routes no more need not be waited for."""
        with self._transaction():
            self._run("DELETE FROM routers WHERE rollout = ? AND router = ?", rollout, router)

    def verify(self) -> int:
        """Follow the chain from the first row to the states; the number of rows.

        Raises:
            LedgerError: the first row that is not what was written, by its number.
        """
        with self._transaction(write=False):
            last: dict[str, Row] = {}
            count, head_hash = self._head()
            prev_hash = GENESIS
            for seq in range(1, count + 1):
                row = self._fetch(seq)
                if fault := _fault(row, prev_hash, last.get(row.rollout)):
                    raise LedgerError(f"{self.where}: row {seq} {fault}; {_ADVICE}")
                last[row.rollout], prev_hash = row, row.hash
            self._check_storage()
            if prev_hash != head_hash or self._run("SELECT 1 FROM ledger WHERE seq > ?", count):
                raise LedgerError(f"{self.where}: the head is not the last row; {_ADVICE}")
            self._check_states(last)
            return count

    def export(self) -> Iterator[dict[str, Any]]:
        """Every row as JSON-able values, of a damaged ledger too; a row that cannot be read says so in its place."""
        with self._transaction(write=False):
            for seq in range(1, self._last_seq() + 1):
                try:
                    yield self._fetch(seq).to_json()
                except LedgerError as error:
                    yield {"seq": seq, "damaged": str(error)}

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""

    @abstractmethod
    def _begin(self, write: bool) -> None: ...

    @abstractmethod
    def _end(self, commit: bool) -> None: ...

    @abstractmethod
    def _execute(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]: ...

    @abstractmethod
    def _trouble(self) -> tuple[type[Exception], ...]:
        """What the database raises."""

    def _check_storage(self) -> None:  # noqa: B027  PostgreSQL checks its own pages
        """Ask the database whether its pages are sound."""

    def _locking(self, query: str) -> str:
        """The query, such that nobody else may change what it finds."""
        return query

    @contextmanager
    def _transaction(self, write: bool = True) -> Generator[None]:
        with self._lock, self._said():
            self._begin(write)
            try:
                yield
                self._end(commit=True)
            except BaseException:
                self._end(commit=False)
                raise

    @contextmanager
    def _said(self) -> Generator[None]:
        """What the database says, as one line."""
        try:
            yield
        except self._trouble() as error:
            raise LedgerError(f"{self.where}: {' '.join(str(error).split()) or type(error).__name__}") from error

    def _run(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._execute(query, values)

    def _record(self, rollout: str, lock: bool = False) -> Record:
        query = "SELECT route, active, epoch, holder, token, beat, watched, heard, evidence FROM rollouts WHERE rollout = ?"
        found = self._run(self._locking(query) if lock else query, rollout)
        if not found:
            raise ServingError(f"{self.where} has no rollout {rollout!r}")
        with self._legible(f"rollout {rollout!r}"):
            kinds = (str, int, int, str, int, int, float, float, str)
            route, active, epoch, holder, token, beat, watched, heard, evidence = _typed(found, *kinds)
            row = _row(self._run("SELECT * FROM ledger WHERE rollout = ? AND epoch = ?", rollout, epoch))
            slowest = self._run("SELECT min(epoch) FROM routers WHERE rollout = ?", rollout)[0][0]
            return Record(row, route, bool(active), holder, token, beat, watched, heard, json.loads(evidence), slowest)

    def _append(self, rollout: str, epoch: int, entry: Entry) -> None:
        """The only place where a state changes."""
        seq, prev_hash = self._head(lock=True)
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = (entry.before, entry.after, entry.cause, entry.evidence, entry.actor)
        unsigned = Row(seq + 1, rollout, epoch, *content, time, prev_hash, "")
        signature = unsigned.content_hash()
        values = (*content[:3], _text(entry.evidence), entry.actor, time, prev_hash, signature)
        self._run("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", seq + 1, rollout, epoch, *values)
        self._run("UPDATE head SET seq = ?, hash = ? WHERE one = 1", seq + 1, signature)
        query = "UPDATE rollouts SET state = ?, epoch = ?, active = ?, watched = 0, heard = 0 WHERE rollout = ?"
        self._run(query, entry.after, epoch, 0 if entry.ends else 1, rollout)

    def _head(self, lock: bool = False) -> tuple[int, str]:
        """Number and hash of the last row."""
        query = "SELECT seq, hash FROM head WHERE one = 1"
        with self._legible("the head"):
            seq, last = _typed(self._run(self._locking(query) if lock else query), int, str)
            return seq, last

    def _last_seq(self) -> int:
        """The number of the last row, by the head, or where that is lost by the rows."""
        try:
            return self._head()[0]
        except LedgerError:
            return self._run("SELECT coalesce(max(seq), 0) FROM ledger")[0][0]

    def _fetch(self, seq: int) -> Row:
        with self._legible(f"row {seq}"):
            return _row(self._run("SELECT * FROM ledger WHERE seq = ?", seq))

    def _check_states(self, last: dict[str, Row]) -> None:
        """The states must be what the rows add up to."""
        states = {name: (epoch, state) for name, epoch, state in self._run("SELECT rollout, epoch, state FROM rollouts")}
        for name in sorted(states.keys() | last.keys()):
            row = last.get(name)
            if row is None or states.get(name) != (row.epoch, row.after):
                whose = f"that of row {row.seq}" if row else "any row's"
                raise LedgerError(f"{self.where}: the state of rollout {name!r} is not {whose}; {_ADVICE}")

    @contextmanager
    def _legible(self, what: str) -> Generator[None]:
        """Name what cannot be read."""
        try:
            yield
        except (*self._trouble(), ValueError) as error:
            raise LedgerError(f"{self.where}: {what} cannot be read: {error}; {_ADVICE}") from error


class SqliteLedger(Ledger):
    """A ledger in one file, for processes of one machine: write-ahead log, every commit on disk before it counts.

    Args:
        path: of the file; made where there is none.
        read_only: touch nothing, to export or verify a ledger that is in doubt.

    Raises:
        LedgerError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        super().__init__()
        self.where, file = str(path), Path(path).absolute()
        if file.is_file() and 0 < file.stat().st_size < _LEAST_FILE:
            raise LedgerError(f"{path} is torn: it has {file.stat().st_size} bytes; {_ADVICE}")
        with self._said():
            uri = f"{file.as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            with self._said():
                self._prepare(read_only)
        except LedgerError:
            self.close()
            raise

    def _prepare(self, read_only: bool) -> None:
        self._run("PRAGMA synchronous = FULL")
        if not read_only:
            self._run("PRAGMA journal_mode = WAL")
            if not self._tables():
                self._make_tables()

    def _make_tables(self) -> None:
        with self._transaction():
            for statement in _TABLES if not self._tables() else ():
                self._run(statement, *[GENESIS] * statement.count("?"))

    def _tables(self) -> list[tuple[Any, ...]]:
        return self._run("SELECT name FROM sqlite_master")

    def close(self) -> None:
        self._db.close()

    def _begin(self, write: bool) -> None:
        self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    def _end(self, commit: bool) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT" if commit else "ROLLBACK")

    def _execute(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        return self._db.execute(query, values).fetchall()

    def _trouble(self) -> tuple[type[Exception], ...]:
        return (sqlite3.Error, UnicodeDecodeError)  # the second while it says which name in a damaged file it cannot read

    def _check_storage(self) -> None:
        found = self._run("PRAGMA integrity_check(1)")[0][0]
        if found != "ok":
            raise LedgerError(f"{self.where}: {' '.join(str(found).split())}; {_ADVICE}")


class PostgresLedger(Ledger):
    """A ledger for many machines: the same tables and statements, rows locked while a transaction looks at them.

    A process that stops inside a transaction is thrown out by the server after :data:`STALLED_SECONDS`.

    Args:
        url: ``postgresql://…``, as libpq reads it.

    Raises:
        LedgerError: the server cannot be reached.
        ServingError: psycopg is not installed.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        try:
            import psycopg
            from psycopg.conninfo import conninfo_to_dict
        except ImportError:
            raise ServingError("a ledger in PostgreSQL needs psycopg: pip install 'nextvec[postgres]'") from None
        self._driver, self._url = psycopg, url
        self._db: psycopg.Connection | None = None
        with self._said():
            self.where = f"PostgreSQL database {conninfo_to_dict(url).get('dbname', '')!r}"
        with self._transaction():
            self._run("SELECT 1 FROM pg_advisory_xact_lock(7390)")  # one process makes the tables
            if self._run("SELECT to_regclass('head')")[0][0] is None:
                for statement in _TABLES:
                    self._run(statement, *[GENESIS] * statement.count("?"))

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

    def _begin(self, write: bool) -> None:
        if self._db is None or self._db.closed:
            options = {
                "lock_timeout": f"{BUSY_SECONDS}s",
                "idle_in_transaction_session_timeout": f"{STALLED_SECONDS}s",
                "synchronous_commit": "on",
            }
            settings = " ".join(f"-c {name}={value}" for name, value in options.items())
            self._db = self._driver.connect(self._url, options=settings, connect_timeout=BUSY_SECONDS)
        if not write:
            self._run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def _end(self, commit: bool) -> None:
        if self._db is None or self._db.closed:
            return
        if commit:
            self._db.commit()
        else:
            self._db.rollback()

    def _execute(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        assert self._db is not None
        cursor = self._db.execute(query.replace("?", "%s").encode(), values)
        return cursor.fetchall() if cursor.description else []

    def _trouble(self) -> tuple[type[Exception], ...]:
        return (self._driver.Error,)

    def _locking(self, query: str) -> str:
        return f"{query} FOR UPDATE"


def open_ledger(where: str | Path) -> Ledger:
    """The ledger in a file, or in the database that ``postgresql://…`` names, once it has been verified.

    Raises:
        LedgerError: it cannot be opened, or a row is not what was written.
    """
    is_url = str(where).startswith(("postgresql://", "postgres://"))
    ledger = PostgresLedger(str(where)) if is_url else SqliteLedger(where)
    try:
        ledger.verify()
    except LedgerError:
        ledger.close()
        raise
    return ledger


def open_damaged(where: str | Path) -> Ledger:
    """A ledger as it is, for what is left of it: nothing is checked, and nothing is written to a file.

    Raises:
        LedgerError: nothing can be read of it at all.
    """
    is_url = str(where).startswith(("postgresql://", "postgres://"))
    return PostgresLedger(str(where)) if is_url else SqliteLedger(where, read_only=True)


def failpoint(name: str) -> None:
    """Die or stop here where the environment says so: ``NEXTVEC_FAILPOINT=after_commit:kill:3``, at the third passing.

    Points: ``before_begin`` of a turn, ``before_commit`` and ``after_commit`` of a change, ``before_ack`` of a router.
    Actions: ``kill`` (SIGKILL), ``stop`` (SIGSTOP). How a crash is tested; nothing else sets the variable.
    """
    wanted = os.environ.get(FAILPOINT)
    if not wanted:
        return
    point, action, count = wanted.split(":")
    if point == name and next(_passings) == int(count):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)


_passings = itertools.count(1)


def _fault(row: Row, prev_hash: str, earlier: Row | None) -> str | None:
    """What is wrong with a row that follows these."""
    if row.prev_hash != prev_hash:
        return "is not linked to the row before it"
    if row.hash != row.content_hash():
        return "is not what was written"
    epoch, state = (earlier.epoch, earlier.after) if earlier else (0, row.before)
    if row.epoch != epoch + 1 or row.before != state:
        return f"does not follow epoch {epoch} of rollout {row.rollout!r}"
    return None


def _row(found: list[tuple[Any, ...]]) -> Row:
    """
    Raises:
        ValueError: what was found is not a row.
    """
    seq, rollout, epoch, before, after, cause, evidence, *signed = _typed(found, int, str, int, *[str] * 8)
    return Row(seq, rollout, epoch, before, after, cause, json.loads(evidence), *signed)


def _typed(found: list[tuple[Any, ...]], *kinds: type) -> tuple[Any, ...]:
    """
    Raises:
        ValueError: there is not one row of these types.
    """
    if not found:
        raise ValueError("it is missing")
    if not all(isinstance(value, kind) for value, kind in zip(found[0], kinds, strict=True)):
        raise ValueError("it holds what is not of its type")
    return found[0]


def _text(value: Any) -> str:
    """JSON in one form, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
