"""Brings model states up to date with their contexts. A long rebuild goes on when the request that began it has ended."""

# Axes: T vectors, D width.

import asyncio
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from nextvec.inference.engine import SEGMENT
from nextvec.serving.answering import SessionState
from nextvec.serving.context_view import View
from nextvec.serving.contexts import Contexts
from nextvec.serving.request_queue import RequestQueue
from nextvec.serving.round_robin import Steps
from nextvec.serving.state_cache import StateCache

INLINE = 16  # vectors that a state may be behind and still catch up in the loop's thread


class StateRebuilds:
    """Takes states out of the cache for requests, brings them up to date, and puts them back.

    Args:
        rebuilt: called for each state that has to read more than :data:`INLINE` vectors.
    """

    def __init__(self, states: StateCache, contexts: Contexts, rebuilt: Callable[[], None]) -> None:
        self.states, self._contexts, self._rebuilt = states, contexts, rebuilt
        self._running: dict[tuple[str, str], asyncio.Future[SessionState]] = {}

    def behind(self, queue: RequestQueue, session: str, view: View) -> int:
        """Vectors of a context that the cached state has not read."""
        return view.head.length - self.states.length(session, queue.engine.digest)

    async def take(
        self, queue: RequestQueue, session: str, view: View, new: Float32[np.ndarray, "T D"] | None
    ) -> tuple[SessionState, Float32[np.ndarray, "T D"]]:
        """Take a session's state out of the cache.

        If the caller is cancelled, a rebuild that has begun goes on, and its state goes to the cache for the next request.

        Args:
            new: the last vectors of the context, if the caller has them.

        Returns:
            The state, and the vectors that it has not read: at most :data:`INLINE`.
        """
        digest, length = queue.engine.digest, view.head.length
        running = self._running.get((session, digest))
        if running is not None:
            await asyncio.wait((running,))
        state = self.states.take(session, digest)
        if state is not None and state.length > length:  # of a deleted session with the same name
            self.states.lose(session, digest)
            state = None
        behind = length - (state.length if state is not None else 0)
        if behind <= INLINE:
            rows = new if new is not None and len(new) == behind else view.read(length - behind)
            return state if state is not None else queue.engine.session(), rows
        self._rebuilt()
        return await self._rebuild(queue, session, view, state), np.empty((0, view.dim), np.float32)

    def put(self, queue: RequestQueue, session: str, view: View, state: SessionState) -> None:
        """Put a state back, unless it is lost or its session was deleted since ``view`` was taken."""
        digest = queue.engine.digest
        # A deleted session that was made again under the same name has another incarnation and another context.
        same = session in self._contexts and self._contexts.head(session).incarnation == view.head.incarnation
        if same and not state.lost:
            self.states.put(session, digest, state, state.num_bytes)
        else:
            self.states.lose(session, digest)

    def lose(self, queue: RequestQueue, session: str) -> None:
        """Give up a state that was taken."""
        self.states.lose(session, queue.engine.digest)

    def close(self) -> None:
        """Cancel the rebuilds that go on without a request."""
        for running in list(self._running.values()):
            running.cancel()

    async def _rebuild(self, queue: RequestQueue, session: str, view: View, state: SessionState | None) -> SessionState:
        name = (session, queue.engine.digest)
        begun = state if state is not None else queue.engine.session()
        running = self._running[name] = queue.reader.run(_caught_up(begun, view))
        running.add_done_callback(lambda done: self._running.pop(name) if self._running.get(name) is done else None)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(lambda done: self._keep(done, queue, session, view))
            raise
        except BaseException:
            self.lose(queue, session)
            raise

    def _keep(self, done: asyncio.Future[SessionState], queue: RequestQueue, session: str, view: View) -> None:
        if done.cancelled() or done.exception() is not None:
            self.lose(queue, session)
        else:
            self.put(queue, session, view, done.result())


def read(state: SessionState, rows: Float32[np.ndarray, "T D"]) -> Steps[SessionState]:
    """Have a state read vectors, one segment a step. The segments are the engine's own, so the bits equal one reading's."""
    for first in range(0, len(rows), SEGMENT):
        if first:
            yield
        state.catch_up(rows[first : first + SEGMENT])
    return state


def _caught_up(state: SessionState, view: View) -> Steps[SessionState]:
    return (yield from read(state, view.read(state.length)))
