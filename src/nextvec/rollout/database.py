"""The database of a ledger: transactions and statements, whatever the driver."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from nextvec.rollout.records import REPAIR, LedgerError

BUSY_SECONDS = 5  # how long a transaction waits for another one


class Database(ABC):
    """A connection that several threads may share; one transaction at a time.

    Attributes:
        where: name for messages.
        errors: exceptions of the driver.
    """

    where: str
    errors: tuple[type[Exception], ...]

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def transaction(self, write: bool = True) -> Generator[None]:
        """Commit at the end of the block, or roll back at an exception.

        Raises:
            LedgerError: the database cannot be read or written.
        """
        with self._lock, self.one_line():
            self.begin(write)
            try:
                yield
                self.end(commit=True)
            except BaseException:
                self.end(commit=False)
                raise

    def run(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Execute one statement; ``?`` stands for a value."""
        return self.execute(query, values)

    def run_locked(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Execute a SELECT and lock the rows it finds until the end of the transaction."""
        return self.execute(self.locking(query), values)

    @contextmanager
    def one_line(self) -> Generator[None]:
        """Turn an exception of the driver into a LedgerError with a message of one line."""
        try:
            yield
        except self.errors as error:
            raise LedgerError(f"{self.where}: {' '.join(str(error).split()) or type(error).__name__}") from error

    @contextmanager
    def reading(self, what: str) -> Generator[None]:
        """Name the row or table that cannot be read."""
        try:
            yield
        except (*self.errors, ValueError) as error:
            raise LedgerError(f"{self.where}: {what} cannot be read: {error}; {REPAIR}") from error

    def locking(self, query: str) -> str:
        """The query in the form that locks the rows it finds."""
        return query

    def check_storage(self) -> None:  # noqa: B027  PostgreSQL checks its own pages
        """Ask the database whether its pages are sound.

        Raises:
            LedgerError: they are not.
        """

    @abstractmethod
    def begin(self, write: bool) -> None: ...

    @abstractmethod
    def end(self, commit: bool) -> None: ...

    @abstractmethod
    def execute(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]: ...

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""
