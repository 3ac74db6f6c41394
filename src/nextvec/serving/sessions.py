"""Sessions: begun, appended to, asked, listed and deleted."""

import asyncio
import time
from heapq import nsmallest
from typing import Any

from nextvec.serving.answers import RoutingRequest, ServedAnswer
from nextvec.serving.contexts import Contexts
from nextvec.serving.last_use import LastUse
from nextvec.serving.limits import Limits
from nextvec.serving.model_routing import ModelRouting
from nextvec.serving.outcomes import Outcomes
from nextvec.serving.payload import Vectors
from nextvec.serving.predictions import Predictions
from nextvec.serving.refusal import RefusedError
from nextvec.serving.session_requests import SessionRequests, where
from nextvec.serving.state_cache import StateCache
from nextvec.serving.worker_thread import WorkerThread
from nextvec.wire.limits import MOST_LENGTH


class Sessions:
    """The sessions of one server. A session's requests are answered one after another.

    Attributes:
        requests: runs them.
        last_use: time of each session's last request, on the monotonic clock; of the start, for one from before it.
    """

    def __init__(
        self,
        contexts: Contexts,
        states: StateCache,
        routing: ModelRouting,
        outcomes: Outcomes,
        predictions: Predictions,
        limits: Limits,
        worker: WorkerThread,
    ) -> None:
        self.requests = SessionRequests(contexts)
        self.last_use = LastUse()
        self._contexts, self._states, self._routing = contexts, states, routing
        self._outcomes, self._predictions, self._limits, self._worker = outcomes, predictions, limits, worker
        for session in contexts:
            self.touch(session)

    def touch(self, session: str) -> None:
        """Note a request of a session."""
        self.last_use.touch(session, time.monotonic())

    async def open(self, session: str, deadline: float | None = None) -> bool:
        """Begin a session; False if it exists.

        Raises:
            RefusedError: 504 the deadline passed behind another request of the session; 507 the disk is full, or there are as
                many sessions as the limit allows.
        """
        async with self.requests.in_time(session, deadline):
            self.check_room(session)
            made = self.requests.written(lambda: self._contexts.open(session))
            self.touch(session)
            return made

    def check_room(self, session: str) -> None:
        """
        Raises:
            RefusedError: 507 there are as many sessions as the limit allows, and this one is new.
        """
        most = self._limits.max_sessions
        if most is not None and len(self._contexts) >= most and session not in self._contexts:
            raise RefusedError(507, f"this server holds {most} sessions, its limit; delete one first")

    async def delete(self, session: str, deadline: float | None = None) -> bool:
        """Delete a session and its states; False if there is none.

        Raises:
            RefusedError: 504 the deadline passed behind another request of the session; 507 the disk is full.
        """
        async with self.requests.in_time(session, deadline):
            return self.forget(session)

    def forget(self, session: str) -> bool:
        """Delete a session that no request uses; False if there is none.

        Raises:
            RefusedError: 507 the disk is full.
        """
        gone = self.requests.written(lambda: self._contexts.delete(session))
        self._states.drop(session=session)
        self.last_use.forget(session)
        if self._routing.lanes is not None:
            self._routing.lanes.forget(session)
        self._outcomes.lapse(session)
        return gone

    async def append(
        self,
        session: str,
        vectors: Vectors,
        seq: int | None,
        k: int,
        asking: RoutingRequest,
        deadline: float,
        incarnation: int | None = None,
        because: int = 0,
    ) -> ServedAnswer:
        """Write vectors at the end of a session's context, then predict what follows if ``k`` is not 0.

        The last append again changes nothing and gets the same answer: a prediction is a function of the context.

        Args:
            incarnation: of the intended session; None for the present one of this name.
            because: rows of the context to name for each candidate, where the model that answers names rows.

        Raises:
            RefusedError: 404 no such session; 409 another seq or incarnation; 413 too long; 507 the disk is full; 503, 504 no
                time for a prediction. A 503 or 504 has the session's ``seq`` and ``length``, and ``applied``: whether the
                vectors were written.
        """
        async with self.requests.in_time(session, deadline) as members:
            before = self.requests.view(session).head
            self.touch(session)
            if before.length + len(vectors.rows) > MOST_LENGTH:
                raise RefusedError(413, f"a session has at most {MOST_LENGTH} vectors", seq=before.seq, length=before.length)
            applied = self.requests.written(lambda: self._contexts.append(session, vectors, seq, incarnation))
            members["applied"] = True
            if applied and session in self._outcomes.pending:
                await asyncio.shield(self._outcomes.label(session, vectors))
            view = self.requests.view(session)
            if not k:
                stable, head = self._routing.stable_model, view.head
                return ServedAnswer((), "stable", stable.name, "append", stable.engine.digest, head.seq, head.length)
            new = vectors.rows if applied else None
            return await self._predictions.answer(session, view, new, k, asking, deadline, because)

    async def predict(self, session: str, k: int, asking: RoutingRequest, deadline: float, because: int = 0) -> ServedAnswer:
        """Predict what follows a session's context.

        Args:
            because: as of :meth:`append`.

        Raises:
            RefusedError: 404 no such session; 409 it is empty; 503, 504 no time, with ``seq`` and ``length``.
        """
        async with self.requests.in_time(session, deadline):
            view = self.requests.view(session)
            self.touch(session)
            return await self._predictions.answer(session, view, None, k, asking, deadline, because)

    def describe(self, session: str) -> dict[str, int | str]:
        """Where a session stands, and its bytes on disk.

        Raises:
            RefusedError: 404 no such session.
        """
        head = self.requests.view(session).head
        return {"session": session, "bytes": head.bytes, **where(head)}

    async def page(self, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
        """Sessions by name, from the first one after ``after``, and the name to go on after; None at the end.

        Each is :meth:`describe`'s, with ``idle``: seconds since its last request, or since the start.
        """
        names = list(self._contexts)
        found = await self._worker.run(lambda: nsmallest(limit + 1, (name for name in names if name > after)))
        now = time.monotonic()
        shown = [name for name in found[:limit] if name in self._contexts]  # others were deleted in the meantime
        listed = [{**self.describe(name), "idle": round(now - (self.last_use.time(name) or now), 1)} for name in shown]
        return listed, found[limit - 1] if len(found) > limit else None
