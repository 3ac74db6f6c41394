"""Ends idle sessions for rollouts and recordings, and deletes old ones, a few at a time."""

import asyncio
import time

from nextvec.serving.limits import Limits
from nextvec.serving.listeners import Listeners
from nextvec.serving.outcomes import Outcomes
from nextvec.serving.refusal import RefusedError
from nextvec.serving.sessions import Sessions

EXPIRY_SECONDS = 0.1  # between two passes
EXPIRED = 256  # sessions of one pass, at most
MOST_OBSERVED = 100_000  # sessions whose end is remembered; above that the oldest count as ended


class Expiry:
    """A task in the running loop, until it is cancelled."""

    def __init__(self, sessions: Sessions, outcomes: Outcomes, limits: Limits, listeners: Listeners) -> None:
        self._sessions, self._outcomes, self._limits, self._listeners = sessions, outcomes, limits, listeners
        self.task = asyncio.get_running_loop().create_task(self._run(), name="expiry")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            for session in self._outcomes.observed.due(time.monotonic() - self._limits.idle, EXPIRED, MOST_OBSERVED):
                try:
                    self._outcomes.lapse(session)
                except Exception as error:  # a fault in a listener must not keep the other sessions from ending
                    self._listeners.log("expiry", session=session, trouble=f"{type(error).__name__}: {error}")
            self._delete_old()

    def _delete_old(self) -> None:
        if self._limits.session_ttl is None:
            return
        sessions = self._sessions
        for session in sessions.last_use.due(time.monotonic() - self._limits.session_ttl, EXPIRED):
            try:
                if sessions.requests.lock(session).locked():  # a request runs
                    sessions.touch(session)
                else:
                    sessions.forget(session)
            except RefusedError as error:  # a full disk; the session is tried again later
                sessions.touch(session)
                self._listeners.log("expiry", session=session, trouble=str(error))
