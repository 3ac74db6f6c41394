"""A ledger's database in one SQLite file."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nextvec.rollout.database import BUSY_SECONDS, Database
from nextvec.rollout.records import REPAIR, LedgerError
from nextvec.rollout.schema import GENESIS, TABLES

_LEAST_FILE = 512  # bytes; SQLite takes a shorter file for an empty database


class SqliteDatabase(Database):
    """One file, for processes of one machine: write-ahead log, every commit is on disk before it counts.

    Args:
        path: of the file; created if it does not exist.
        read_only: change nothing, to export or verify a damaged ledger.

    Raises:
        LedgerError: the file cannot be opened, or is not a database.
    """

    # UnicodeDecodeError comes from the driver's own message about a name in a damaged file.
    errors = (sqlite3.Error, UnicodeDecodeError)

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        super().__init__()
        self.where, file = str(path), Path(path).absolute()
        if file.is_file() and 0 < file.stat().st_size < _LEAST_FILE:
            raise LedgerError(f"{path} is torn: it has {file.stat().st_size} bytes; {REPAIR}")
        with self.one_line():
            uri = f"{file.as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
        try:
            with self.one_line():
                self._prepare(read_only)
        except LedgerError:
            self.close()
            raise

    def _prepare(self, read_only: bool) -> None:
        self.run("PRAGMA synchronous = FULL")
        if not read_only:
            self.run("PRAGMA journal_mode = WAL")
            if not self._has_tables():
                self._create_tables()

    def _create_tables(self) -> None:
        with self.transaction():
            for statement in TABLES if not self._has_tables() else ():  # another process may have been faster
                self.run(statement, *[GENESIS] * statement.count("?"))

    def _has_tables(self) -> bool:
        return bool(self.run("SELECT name FROM sqlite_master"))

    def begin(self, write: bool) -> None:
        self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    def end(self, commit: bool) -> None:
        if self._db.in_transaction:
            self._db.execute("COMMIT" if commit else "ROLLBACK")

    def execute(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        return self._db.execute(query, values).fetchall()

    def check_storage(self) -> None:
        found = self.run("PRAGMA integrity_check(1)")[0][0]
        if found != "ok":
            raise LedgerError(f"{self.where}: {' '.join(str(found).split())}; {REPAIR}")

    def close(self) -> None:
        self._db.close()
