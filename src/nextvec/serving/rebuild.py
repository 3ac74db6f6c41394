"""Model states brought up to date with their contexts; what takes long goes on when its request is over."""

# Axes: T vectors, D width.

import asyncio
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from nextvec.inference.engine import SEGMENT
from nextvec.serving.answering import SessionState
from nextvec.serving.contexts import Contexts, View
from nextvec.serving.line import Line
from nextvec.serving.states import States
from nextvec.serving.turns import Steps

INLINE = 16  # vectors that a state may be behind and still catch up in the loop


class Rebuilds:
    """Takes states out of the cache for requests, and puts them back.

    Args:
        rebuilt: called for each state that has to read more than :data:`INLINE` vectors.
    """

    def __init__(self, states: States, contexts: Contexts, rebuilt: Callable[[], None]) -> None:
        self.states, self._contexts, self._rebuilt = states, contexts, rebuilt
        self._running: dict[tuple[str, str], asyncio.Future[SessionState]] = {}

    def behind(self, line: Line, session: str, view: View) -> int:
        """Vectors of a context that the cached state has not read."""
        return view.head.length - self.states.length(session, line.engine.digest)

    async def take(
        self, line: Line, session: str, view: View, new: Float32[np.ndarray, "T D"] | None
    ) -> tuple[SessionState, Float32[np.ndarray, "T D"]]:
        """A session's state, taken out of the cache, and the few vectors that it still has to read.

        A caller that is cancelled leaves the reading under way to go on; it ends in the cache, for the next one.

        Args:
            new: the last vectors of the context, where the caller has them.
        """
        digest, length = line.engine.digest, view.head.length
        running = self._running.get((session, digest))
        if running is not None:
            await asyncio.wait((running,))
        state = self.states.take(session, digest)
        if state is not None and state.length > length:  # of a session of the same name that was deleted meanwhile
            self.states.lose(session, digest)
            state = None
        behind = length - (state.length if state is not None else 0)
        if behind <= INLINE:
            rows = new if new is not None and len(new) == behind else view.read(length - behind)
            return state if state is not None else line.engine.session(), rows
        self._rebuilt()
        return await self._read(line, session, view, state), np.empty((0, view.dim), np.float32)

    def put(self, line: Line, session: str, view: View, state: SessionState) -> None:
        """Put a state back, unless it ended with its process, or its session was deleted meanwhile.

        A session that was made again under the same name has another context.
        """
        digest = line.engine.digest
        if not state.lost and session in self._contexts and self._contexts.head(session).incarnation == view.head.incarnation:
            self.states.put(session, digest, state, state.num_bytes)
        else:
            self.states.lose(session, digest)

    def lose(self, line: Line, session: str) -> None:
        """What was taken will not come back."""
        self.states.lose(session, line.engine.digest)

    def close(self) -> None:
        """Give up the readings that no request waits for any more."""
        for running in list(self._running.values()):
            running.cancel()

    async def _read(self, line: Line, session: str, view: View, state: SessionState | None) -> SessionState:
        name = (session, line.engine.digest)
        begun = state if state is not None else line.engine.session()
        running = self._running[name] = line.aside.run(_caught_up(begun, view))
        running.add_done_callback(lambda done: self._running.pop(name) if self._running.get(name) is done else None)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            running.add_done_callback(lambda done: self._leave(done, line, session, view))
            raise
        except BaseException:
            self.lose(line, session)
            raise

    def _leave(self, done: asyncio.Future[SessionState], line: Line, session: str, view: View) -> None:
        if done.cancelled() or done.exception() is not None:
            self.lose(line, session)
        else:
            self.put(line, session, view, done.result())


def read(state: SessionState, rows: Float32[np.ndarray, "T D"]) -> Steps[SessionState]:
    """Have a state read vectors, a segment a step: an engine's own segments, so the bits are those of one reading."""
    for first in range(0, len(rows), SEGMENT):
        if first:
            yield
        state.catch_up(rows[first : first + SEGMENT])
    return state


def _caught_up(state: SessionState, view: View) -> Steps[SessionState]:
    return (yield from read(state, view.read(state.length)))
