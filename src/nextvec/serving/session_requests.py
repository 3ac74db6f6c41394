"""What every request of a session has in common: its turn, its deadline, and where the session stands in an error."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from weakref import WeakValueDictionary

from nextvec.serving.answering import EndedError
from nextvec.serving.context_log import FullError
from nextvec.serving.context_view import ConflictError, Head, View
from nextvec.serving.contexts import Contexts
from nextvec.serving.refusal import RefusedError


class SessionRequests:
    """Runs the requests of one session one after another, and turns errors of contexts into problems."""

    def __init__(self, contexts: Contexts) -> None:
        self.contexts = contexts
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def in_time(self, session: str, deadline: float | None) -> AsyncGenerator[dict[str, Any]]:
        """One request of a session: it waits for those before it, and the block is cancelled at its deadline.

        Yields:
            As :meth:`standing`.

        Raises:
            RefusedError: 504 the deadline has passed.
        """
        with self.standing(session) as members:
            try:
                async with asyncio.timeout_at(deadline), self.lock(session):
                    if deadline is not None and asyncio.get_running_loop().time() > deadline:
                        raise TimeoutError
                    yield members
            except TimeoutError:
                raise RefusedError(504, "the deadline has passed") from None

    @contextmanager
    def standing(self, session: str) -> Generator[dict[str, Any]]:
        """Add to problems of 503 and 504 where the session stands.

        Yields:
            Members of such a problem; ``applied`` is False until the block sets it.
        """
        members: dict[str, Any] = {"applied": False}
        try:
            yield members
        except EndedError:
            detail = "the model's process has ended and is being started again"
            raise RefusedError(503, detail, {"retry-after": "1"}, **self._where(session), **members) from None
        except RefusedError as refused:
            if refused.status not in (503, 504):
                raise
            # A new error: several requests may share one, such as that of a stop, and each has a session of its own.
            members = {**self._where(session), **members, **refused.members}
            raise RefusedError(refused.status, str(refused), refused.headers, **members) from None

    def lock(self, session: str) -> asyncio.Lock:
        """Held by the request of a session that runs."""
        lock = self._locks.get(session)
        if lock is None:
            lock = self._locks[session] = asyncio.Lock()
        return lock

    def view(self, session: str) -> View:
        """The session's context.

        Raises:
            RefusedError: 404 no such session.
        """
        try:
            return self.contexts.view(session)
        except KeyError:
            raise RefusedError(404, "there is no such session; PUT it first") from None

    def written(self, write: Callable[[], bool]) -> bool:
        """The result of a write to the contexts.

        Raises:
            RefusedError: 404 no such session; 409 the write does not fit the context; 507 the log cannot be written.
        """
        try:
            return write()
        except KeyError:
            raise RefusedError(404, "there is no such session; PUT it first") from None
        except ConflictError as conflict:
            raise RefusedError(409, str(conflict), **where(conflict.head)) from None
        except FullError as full:
            raise RefusedError(507, str(full)) from None

    def _where(self, session: str) -> dict[str, Any]:
        return where(self.contexts.head(session)) if session in self.contexts else {}


def where(head: Head) -> dict[str, Any]:
    """Where a session stands, as members of an answer or a problem."""
    return {"seq": head.seq, "length": head.length, "incarnation": f"{head.incarnation:016x}"}
