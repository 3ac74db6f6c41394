"""Numbers of appends: how a session repeats one without applying it twice."""

from dataclasses import dataclass
from typing import Any

import msgspec

from nextvec.client.calls import Call, Exchange, answer_of, binary, describe
from nextvec.client.errors import ReplacedError, ServerError, problem_of
from nextvec.wire.media import JSON
from nextvec.wire.predictions import ContextRequest, PredictionAnswer
from nextvec.wire.problem import Problem
from nextvec.wire.sessions import RestoredSession, SessionDescription

# After these answers no earlier try of the same append can have been written. A 413 with ``fits`` is not one of them: how much
# text can be encoded in time changes from one try to the next.
NEVER_APPLIED = (400, 404, 413, 415, 422)


@dataclass(frozen=True)
class _Append:
    """An append without an answer."""

    seq: int
    content: bytes
    kind: str


class NumberedSession:
    """A session as this client knows it. One client appends to a session at a time.

    Attributes:
        seq, length: appends and vectors so far.
        incarnation: distinguishes this session from a later one of the same name.
        state: of a restored session, ``restored`` or ``rebuilt`` (from the context); None of any other session.
    """

    def __init__(self, found: SessionDescription) -> None:
        self.name, self.seq, self.length, self.incarnation = found.session, found.seq, found.length, found.incarnation
        self.state = found.state if isinstance(found, RestoredSession) else None
        self._lost: _Append | None = None
        self._unsure = False  # whether the lost append may have been written

    def appended(self, vectors: Any, k: int, text: bool) -> Exchange[PredictionAnswer]:
        """Append ``[D]`` or ``[T, D]``."""
        return self._append(*binary(vectors), k, text)

    def appended_json(self, request: ContextRequest, k: int, text: bool) -> Exchange[PredictionAnswer]:
        """Append rows of the bank, or a text."""
        return self._append(msgspec.json.encode(request), JSON, k, text)

    def _append(self, content: bytes, kind: str, k: int, text: bool) -> Exchange[PredictionAnswer]:
        lost = self._lost
        again = lost is not None and (lost.content, lost.kind) == (content, kind)
        if self._unsure and not again:
            found = yield from describe(self.name)
            self._update(found.seq, found.length, found.incarnation)
        seq = lost.seq if lost is not None and again else self.seq + 1
        self._lost, self._unsure = _Append(seq, content, kind), True
        query = (("seq", str(seq)), ("k", str(k)), ("text", str(int(text))), ("incarnation", self.incarnation))
        response = yield Call("POST", f"/v1/sessions/{self.name}/append", content, kind, query)
        try:
            answer = answer_of(response)
        except ServerError as error:
            self._refused(error)
            raise
        self.seq, self.length = answer.seq or 0, answer.length
        self._lost, self._unsure = None, False
        return answer

    def _refused(self, error: ServerError) -> None:
        problem: Problem = error.problem
        if isinstance(error, ReplacedError):
            self._lost, self._unsure = None, False
        elif problem.seq is not msgspec.UNSET and problem.length is not msgspec.UNSET:
            self._update(problem.seq, problem.length, problem.incarnation or self.incarnation)
            if error.status == 409:
                self._lost = None
        elif error.status in NEVER_APPLIED and problem.fits is msgspec.UNSET:
            self._lost, self._unsure = None, False

    def _update(self, seq: int, length: int, incarnation: str) -> None:
        """Take over the state of the session on the server.

        Raises:
            ReplacedError: another session now has this name.
        """
        if incarnation != self.incarnation:
            problem = problem_of(409, "this session was deleted and made again")
            found = msgspec.structs.replace(problem, seq=seq, length=length, incarnation=incarnation)
            raise ReplacedError(409, found)
        self.seq, self.length = seq, length
        self._unsure = False
