"""A ledger's database that a crash or a stop interrupts at a named point of a transaction.

Points: ``before_begin`` of a writing transaction, ``before_commit`` and ``after_commit`` of one that appends a row. The ledger
knows nothing of it: this wraps its driver.
"""

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from nextvec.rollout.database import Database


class Interrupted(Database):
    """Calls ``strike`` at the ``passing``-th passing of ``point``; never where the point is None."""

    def __init__(self, inner: Database, point: str | None, strike: Callable[[], None], passing: int = 1) -> None:
        super().__init__()
        self.inner, self.where, self.errors = inner, inner.where, inner.errors
        self._strike, self._appends = strike, False
        self.arm(point, passing)

    def arm(self, point: str | None, passing: int = 1) -> None:
        self._point, self._left = point, passing

    def begin(self, write: bool) -> None:
        self._appends = False
        if write:
            self._pass("before_begin")
        self.inner.begin(write)

    def end(self, commit: bool) -> None:
        if not (commit and self._appends):
            self.inner.end(commit)
            return
        self._pass("before_commit")
        self.inner.end(commit)
        self._pass("after_commit")

    def execute(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        self._appends = self._appends or query.startswith("INSERT INTO ledger")
        return self.inner.execute(query, values)

    def locking(self, query: str) -> str:
        return self.inner.locking(query)

    def check_storage(self) -> None:
        self.inner.check_storage()

    def close(self) -> None:
        self.inner.close()

    def _pass(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if not self._left:
                self._strike()


def strike(action: str) -> Callable[[], None]:
    """``kill`` or ``stop`` of this process."""
    return lambda: os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
