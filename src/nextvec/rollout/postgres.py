"""A ledger's database in PostgreSQL."""

from collections.abc import Sequence
from typing import Any

from nextvec.errors import ServingError
from nextvec.rollout.database import BUSY_SECONDS, Database
from nextvec.rollout.schema import GENESIS, TABLES

STALLED_SECONDS = 15  # after which PostgreSQL ends a transaction whose process has stopped
_LOCK = 7390  # advisory lock of the process that creates the tables


class PostgresDatabase(Database):
    """A database for many machines. Rows are locked while a transaction uses them.

    The server ends the transaction of a stopped process after :data:`STALLED_SECONDS`. A lost connection is replaced by the
    next transaction.

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
        self.where, self.errors = "PostgreSQL", (psycopg.Error,)
        self._driver, self._url = psycopg, url
        self._db: psycopg.Connection | None = None
        with self.one_line():
            self.where = f"PostgreSQL database {conninfo_to_dict(url).get('dbname', '')!r}"
        with self.transaction():
            self.run("SELECT 1 FROM pg_advisory_xact_lock(?)", _LOCK)
            if self.run("SELECT to_regclass('head')")[0][0] is None:
                for statement in TABLES:
                    self.run(statement, *[GENESIS] * statement.count("?"))

    def begin(self, write: bool) -> None:
        if self._db is None or self._db.closed:
            options = {
                "lock_timeout": f"{BUSY_SECONDS}s",
                "idle_in_transaction_session_timeout": f"{STALLED_SECONDS}s",
                "synchronous_commit": "on",
            }
            settings = " ".join(f"-c {name}={value}" for name, value in options.items())
            self._db = self._driver.connect(self._url, options=settings, connect_timeout=BUSY_SECONDS)
        if not write:
            self.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def end(self, commit: bool) -> None:
        if self._db is None or self._db.closed:
            return
        if commit:
            self._db.commit()
        else:
            self._db.rollback()

    def execute(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        assert self._db is not None
        cursor = self._db.execute(query.replace("?", "%s").encode(), values)
        return cursor.fetchall() if cursor.description else []

    def locking(self, query: str) -> str:
        return f"{query} FOR UPDATE"

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
