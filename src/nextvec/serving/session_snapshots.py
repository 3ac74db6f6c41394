"""Sessions saved for another server, and restored from one."""

from nextvec.serving import session_transfer
from nextvec.serving.context_view import ConflictError, first_record
from nextvec.serving.contexts import Contexts
from nextvec.serving.model_routing import ModelRouting
from nextvec.serving.refusal import RefusedError
from nextvec.serving.session_inference import SessionInference
from nextvec.serving.session_requests import where
from nextvec.serving.session_transfer import TransferredSession
from nextvec.serving.sessions import Sessions
from nextvec.serving.worker_thread import WorkerThread
from nextvec.wire.limits import MOST_SNAPSHOT


class SessionSnapshots:
    """Saves and restores sessions: the context, and the stable model's state."""

    def __init__(
        self, sessions: Sessions, contexts: Contexts, routing: ModelRouting, inference: SessionInference, worker: WorkerThread
    ) -> None:
        self._sessions, self._contexts, self._routing = sessions, contexts, routing
        self._inference, self._worker = inference, worker

    async def save(self, session: str, deadline: float) -> bytes:
        """A session's context, and its state for an engine of the same weights.

        Raises:
            RefusedError: 404 no such session; 413 larger than what a server restores; 503, 504 no time, with ``seq`` and
                ``length``.
        """
        requests, rebuilds = self._sessions.requests, self._inference.rebuilds
        async with requests.in_time(session, deadline):
            view, model = requests.view(session), self._routing.stable_model
            with model.queue.used():
                state, rows = await self._inference.state(model, session, view, None)
                packing = session_transfer.pack(state, rows, view, model.engine.encoder_fingerprint)
                try:
                    saved = await self._worker.counted(model.queue.reader.run(packing))
                except BaseException:
                    rebuilds.lose(model.queue, session)
                    raise
                rebuilds.put(model.queue, session, view, state)
            if len(saved) > MOST_SNAPSHOT:
                raise RefusedError(
                    413, f"this session's snapshot has {len(saved)} bytes; a server restores {MOST_SNAPSHOT} at most"
                )
            return saved

    async def restore(self, session: str, data: bytes, deadline: float) -> tuple[bool, bool]:
        """Begin a session with a snapshot, perhaps of another server: all of it or nothing.

        All slow steps come before the one record that is written, so a request that fails or is late has written nothing.

        Returns:
            Whether the context was written: False if the session held exactly this one already. Whether its state was
            restored: False if the next request rebuilds it from the context.

        Raises:
            DataError: as :func:`nextvec.serving.session_transfer.unpack`.
            RefusedError: 413, 422 as there; 409 the session is not empty; 507 the disk is full, or there are as many sessions
                as the limit allows; 503, 504 no time.
        """
        requests = self._sessions.requests
        async with requests.in_time(session, deadline):
            model = self._routing.stable_model
            with model.queue.used():
                unpacking = session_transfer.unpack(data, model.engine)
                received = await self._worker.counted(model.queue.reader.run(unpacking))
                self._sessions.check_room(session)
                made = await self._begin(session, received)
                self._sessions.touch(session)
                if received.state is not None:
                    self._inference.rebuilds.put(model.queue, session, requests.view(session), received.state)
            return made, received.state is not None

    async def _begin(self, session: str, received: TransferredSession) -> bool:
        """Write a received context; False if the session holds exactly this one already."""
        requests, context = self._sessions.requests, received.context
        before = requests.view(session) if session in self._contexts else None
        try:
            whole = await self._worker.run(lambda: first_record(session, received.rows, context.seq, context.digest, before))
        except ConflictError as conflict:
            raise RefusedError(409, str(conflict), **where(conflict.head)) from None
        if whole is None:
            return False

        def write() -> bool:
            self._contexts.restore(whole, before)
            return True

        return requests.written(write)
