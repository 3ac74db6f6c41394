"""An engine in a process of its own, behind the calls of :class:`~nextvec.serving.answering.Answering`.

A model that the kernel kills for its memory, that crashes in compiled code, or that hangs and holds the interpreter, ends its
own process only. The server goes on: pending requests get an error, the process is started again
(:mod:`nextvec.serving.engine_process`), and states are rebuilt from contexts.
"""

# Axes: T vectors, R rows, D width.

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float32, Int64

from nextvec.bank import Bank
from nextvec.errors import DataError, ServingError
from nextvec.inference import Because, Engine, Expected, PredictionRequest
from nextvec.inference.place import ComputePlace, StatusListener
from nextvec.serving.answering import EndedError
from nextvec.serving.engine_messages import Json, bytes_to_rows, error_from_json, rows_to_bytes
from nextvec.serving.engine_process import Channel, EngineProcess

ANSWER_SECONDS, READ_SECONDS = 10.0, 300.0  # for a batch or a label; for a long context or a text


class RemoteSession:
    """A session's state in the engine's process. It is freed there when this object is.

    Attributes:
        length: vectors read.
        num_bytes: of the state.
        life: number of the process that holds it; the state does not survive that process.
    """

    def __init__(self, engine: "IsolatedEngine", number: int, life: int) -> None:
        self.engine, self.number, self.life = engine, number, life
        self.length = self.num_bytes = 0

    @property
    def lost(self) -> bool:
        """Whether its process has ended, or the engine was retired."""
        return self.engine.retired or self.engine.life != self.life

    def catch_up(self, vectors: np.ndarray) -> None:
        """Read a long context [T, D]; requests of other sessions are answered in the meantime.

        Raises:
            ServingError: the engine refuses the vectors; its process has ended.
        """
        self.engine.catch_up(self, vectors)

    def snapshot(self) -> bytes:
        """:meth:`nextvec.inference.Session.snapshot`.

        Raises:
            EndedError: its process has ended.
        """
        return self.engine.snapshot(self)


class IsolatedEngine:
    """An :class:`~nextvec.inference.Engine` in a process of its own, which is started again when it ends.

    Attributes:
        held: states in the process at the last answer.
        retired: whether another engine answers in its place.

    Args:
        run: folder of the run.
        open_run: called in the child; must be picklable.
        listener: as :meth:`subscribe`'s.

    Raises:
        NextvecError: the run cannot be opened; with the child's message.
    """

    def __init__(self, run: Path, open_run: Callable[[Path], Engine], listener: StatusListener | None = None) -> None:
        self.held, self.retired = 0, False
        self._numbers = itertools.count()
        self._released: deque[int] = deque()  # numbers of sessions that were freed here
        self._front, self._reader = Channel(ANSWER_SECONDS), Channel(READ_SECONDS)
        self._labels, self._texts = Channel(ANSWER_SECONDS), Channel(READ_SECONDS)
        channels = (self._front, self._reader, self._labels, self._texts)
        self._process = EngineProcess(run, open_run, channels, listener or _ignore)
        facts = self._process.facts
        self.bank = Bank.open(facts["bank"])
        self.digest, self.weights = str(facts["digest"]), facts["weights"]
        self.context: int | None = facts["context"]
        self.names_rows: bool = facts["names_rows"]

    @property
    def dim(self) -> int:
        """Width of the vectors that it reads."""
        return self.bank.dim

    @property
    def encoder_fingerprint(self) -> str:
        """Of the encoder that made the bank."""
        return self.bank.manifest.encoder_fingerprint

    @property
    def place(self) -> ComputePlace:
        """Its own process, if that runs."""
        return ComputePlace(isolated=True, pid=self._process.pid, last_end=self._process.last_end)

    @property
    def life(self) -> int:
        """Number of the process, from 1."""
        return self._process.life

    @property
    def fault(self) -> str | None:
        """Why it cannot be asked now; None if it can."""
        return self._process.fault

    def subscribe(self, listener: StatusListener) -> None:
        """Call ``listener`` in a thread when the process has ``ended``, was ``restarted``, or its start was ``refused``.

        The second argument is one line for the log. The states of the process are gone in all three cases.
        """
        self._process.listener = listener

    def retire(self) -> None:
        """Count all states as lost: another engine answers from now on."""
        self.retired = True

    def close(self) -> None:
        """End the process and wait for that; pending requests get :class:`EndedError`."""
        self._process.close()

    def session(self) -> RemoteSession:
        """A session that has read nothing."""
        session = RemoteSession(self, next(self._numbers), self.life)
        weakref.finalize(session, self._released.append, session.number)
        return session

    def restore(self, data: bytes) -> RemoteSession:
        """:meth:`nextvec.inference.Engine.restore`.

        Raises:
            DataError: the engine refuses the bytes.
            EndedError: the process has ended.
        """
        session = self.session()
        try:
            reply, _ = self._process.ask(self._reader, {"do": "restore", "session": session.number}, data, session.life)
        except EndedError:
            raise
        except ServingError as error:
            raise DataError(str(error)) from None
        session.length, session.num_bytes = reply["length"], reply["bytes"]
        return session

    def answers(self, requests: Sequence[PredictionRequest]) -> list[list[Expected] | Exception]:
        """:meth:`nextvec.inference.Engine.answers`; if the process ends, every request gets :class:`EndedError`."""
        life = self.life
        here = [request for request in requests if request.state.engine is self and request.state.life == life]
        answers: dict[int, list[Expected] | Exception] = {}
        try:
            answers = dict(zip(map(id, here), self._answers(here, life), strict=True)) if here else {}
        except EndedError as error:
            answers = {id(request): error for request in here}
        lost = EndedError("this state ended with the engine's process")
        return [answers.get(id(request), lost) for request in requests]

    def catch_up(self, session: RemoteSession, vectors: np.ndarray) -> None:
        """:meth:`RemoteSession.catch_up`."""
        content = {"do": "catch_up", "session": session.number}
        reply, _ = self._process.ask(self._reader, content, rows_to_bytes(vectors), session.life)
        session.length, session.num_bytes = reply["length"], reply["bytes"]

    def snapshot(self, session: RemoteSession) -> bytes:
        """:meth:`RemoteSession.snapshot`."""
        return self._process.ask(self._reader, {"do": "snapshot", "session": session.number}, life=session.life)[1]

    def nearest(self, vectors: np.ndarray) -> Int64[np.ndarray, " R"]:
        """:meth:`nextvec.inference.Engine.nearest`.

        Raises:
            NextvecError: a vector that cannot be read; the process has ended.
        """
        reply, _ = self._process.ask(self._labels, {"do": "nearest"}, rows_to_bytes(vectors))
        return np.array(reply["rows"], np.int64)

    def cut(self, text: str) -> list[str]:
        """:meth:`nextvec.inference.Engine.cut`.

        Raises:
            NextvecError: an empty text, no encoder, or the process has ended.
        """
        return self._process.ask(self._texts, {"do": "cut", "text": text})[0]["chunks"]

    def encode_chunks(self, chunks: Sequence[str]) -> Float32[np.ndarray, "T D"]:
        """:meth:`nextvec.inference.Engine.encode_chunks`.

        Raises:
            NextvecError: no encoder, or the process has ended.
        """
        return bytes_to_rows(self._process.ask(self._texts, {"do": "encode", "chunks": list(chunks)})[1], self.dim)

    def _answers(self, requests: Sequence[PredictionRequest], life: int) -> list[list[Expected] | Exception]:
        released = [self._released.popleft() for _ in range(len(self._released))]
        asked = [(request.state.number, len(request.rows), request.k, request.because) for request in requests]
        content: Json = {"do": "answers", "requests": asked, "released": released}
        rows = np.concatenate([request.rows for request in requests])
        reply, _ = self._process.ask(self._front, content, rows_to_bytes(rows), life)
        self.held = reply["held"]
        return [self._answer(request, answer) for request, answer in zip(requests, reply["answers"], strict=True)]

    def _answer(self, request: PredictionRequest, answer: Json) -> list[Expected] | Exception:
        if "error" in answer:
            return error_from_json(answer)
        request.rows = request.rows[:0]
        request.state.length, request.state.num_bytes = answer["length"], answer["bytes"]
        scored = zip(answer["rows"], answer["scores"], answer["probabilities"], strict=True)
        found = [Expected.of(self.bank, *each) for each in scored]
        if not request.because:
            return found
        reasons = msgspec.convert(answer["because"], list[Because])
        return [replace(expected, because=why) for expected, why in zip(found, reasons, strict=True)]


def _ignore(*_: Any) -> None:
    pass
