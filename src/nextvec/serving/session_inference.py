"""Asks one model about a session or a whole context; it takes the session's state from the cache and puts it back."""

# Axes: T vectors, D width.

import numpy as np
from jaxtyping import Float32

from nextvec.inference import Expected
from nextvec.serving.answering import EndedError, SessionState
from nextvec.serving.context_view import View
from nextvec.serving.request_queue import QueuedRequest
from nextvec.serving.served_models import ServedModel
from nextvec.serving.state_rebuild import INLINE, StateRebuilds, read
from nextvec.serving.worker_thread import WorkerThread


class SessionInference:
    """Inference for sessions, by any served model."""

    def __init__(self, rebuilds: StateRebuilds, worker: WorkerThread) -> None:
        self.rebuilds, self._worker = rebuilds, worker

    async def ask(
        self,
        model: ServedModel,
        session: str,
        view: View,
        new: Float32[np.ndarray, "T D"] | None,
        k: int,
        deadline: float,
        because: int = 0,
    ) -> list[Expected]:
        """The ``k`` candidates that a model expects after a context.

        Args:
            new: the last vectors of the context, if the caller has them.
            deadline: on the loop's clock.
            because: rows of the context to name for each candidate; none if the model does not name rows.

        Raises:
            EndedError: the model's process has ended, or the model was replaced.
            RefusedError: 504 the deadline passed in the queue.
        """
        with model.queue.used():
            state, rows = await self.state(model, session, view, new)
            request = QueuedRequest(state, rows, k, deadline, because=because * model.engine.names_rows)
            try:
                found = await model.queue.ask(request)
            except BaseException as error:
                # A request that was still queued has not changed its state; a closed queue ends with its states.
                if request.begun or isinstance(error, EndedError):
                    self.rebuilds.lose(model.queue, session)
                else:
                    self.rebuilds.put(model.queue, session, view, state)
                raise
            self.rebuilds.put(model.queue, session, view, state)
            return found

    async def ask_whole(
        self, model: ServedModel, rows: Float32[np.ndarray, "T D"], k: int, deadline: float, because: int = 0
    ) -> list[Expected]:
        """The ``k`` candidates that a model expects after a context without a session.

        Args:
            because: as of :meth:`ask`.

        Raises:
            EndedError, RefusedError: as :meth:`ask`.
        """
        with model.queue.used():
            state, unread = model.engine.session(), rows
            if len(rows) > INLINE:
                await self._worker.counted(model.queue.reader.run(read(state, rows)))
                unread = np.empty((0, rows.shape[1]), np.float32)
            named = because * model.engine.names_rows
            return await model.queue.ask(QueuedRequest(state, unread, k, deadline, because=named))

    async def state(
        self, model: ServedModel, session: str, view: View, new: Float32[np.ndarray, "T D"] | None
    ) -> tuple[SessionState, Float32[np.ndarray, "T D"]]:
        """:meth:`StateRebuilds.take`; a request that waits for it counts as waiting for a thread."""
        return await self._worker.counted(self.rebuilds.take(model.queue, session, view, new))

    async def warm(self, model: ServedModel, session: str, view: View) -> None:
        """Bring the cached state up to date."""
        with model.queue.used():
            state, _ = await self.state(model, session, view, None)
        self.rebuilds.put(model.queue, session, view, state)  # the next request reads the few remaining vectors

    def is_warm(self, model: ServedModel, session: str, view: View) -> bool:
        """Whether the state can catch up without a rebuild in a thread."""
        return self.rebuilds.behind(model.queue, session, view) <= INLINE
