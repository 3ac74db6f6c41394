"""Open a ledger by the name of its file or by the URL of its database."""

from pathlib import Path

from nextvec.rollout.database import Database
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.postgres import PostgresDatabase
from nextvec.rollout.records import LedgerError
from nextvec.rollout.sqlite import SqliteDatabase


def open_ledger(where: str | Path) -> Ledger:
    """The verified ledger in a file, or in the database of ``postgresql://…``. A new file is created.

    Raises:
        LedgerError: the ledger cannot be opened, or a row differs from what was written.
    """
    ledger = Ledger(_database(where))
    try:
        ledger.verify()
    except LedgerError:
        ledger.close()
        raise
    return ledger


def open_damaged(where: str | Path) -> Ledger:
    """A ledger without verification, for export. A file is not written.

    Raises:
        LedgerError: nothing can be read.
    """
    return Ledger(_database(where, read_only=True))


def _database(where: str | Path, read_only: bool = False) -> Database:
    if str(where).startswith(("postgresql://", "postgres://")):
        return PostgresDatabase(str(where))
    return SqliteDatabase(where, read_only)
