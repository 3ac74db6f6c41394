"""An engine in a process of its own: whatever becomes of it, the server goes on.

A model that is killed for the memory it takes, that crashes in compiled code,
or that hangs holding the interpreter takes a process with it. Here it is not
the server's: who asks gets an error, states are made anew from contexts, and
the process is started again. Questions and answers are JSON and raw rows over
a socket between parent and child; nothing is unpickled.
"""

# Axes: T vectors, R rows, D width.

import atexit
import ctypes
import itertools
import multiprocessing
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from jaxtyping import Float32, Int64

from nextvec.bank import Bank
from nextvec.errors import DataError, NextvecError, NotFiniteError, RunError, ServingError
from nextvec.inference import Engine, Expected, PredictionRequest, Session
from nextvec.inference.place import ComputePlace, StatusListener
from nextvec.serving.answering import EndedError

ANSWER_SECONDS, READ_SECONDS, OPEN_SECONDS = 10.0, 300.0, 300.0  # then a process counts as hung and is ended
WATCH_SECONDS = 0.25
FIRST_PAUSE, LONGEST_PAUSE, SOUND_SECONDS = 0.2, 30.0, 60.0  # before a start; of a process that lived so long it is the first
MOST_REPLY = 1 << 30
EXPENDABLE = b"700"  # of 1000: whom the kernel ends first where memory runs out
PR_SET_PDEATHSIG = 1
Json = dict[str, Any]


class RemoteSession:
    """A session whose state lies in the engine's process, for as long as this object lives.

    Attributes:
        length: vectors read.
        num_bytes: of the state over there.
        life: of the process, counted from its first start; a state does not survive it.
    """

    def __init__(self, engine: "EngineProcess", number: int, life: int) -> None:
        self.engine, self.number, self.life = engine, number, life
        self.length = self.num_bytes = 0

    @property
    def lost(self) -> bool:
        """Whether no later request can be answered from this state."""
        return self.engine.retired or self.engine.life != self.life

    def catch_up(self, vectors: np.ndarray) -> None:
        """Read a long context, beside those who answer.

        Raises:
            DataError, ServingError: the engine refuses the vectors; its process has ended.
        """
        self.engine.catch_up(self, vectors)

    def snapshot(self) -> bytes:
        """:meth:`nextvec.inference.Session.snapshot`.

        Raises:
            EndedError: its process has ended.
        """
        return self.engine.snapshot(self)


@dataclass
class _Wire:
    """One of the ways to ask, each with a thread over there: none waits behind another.

    Attributes:
        since: when the request under way was asked, on the monotonic clock.
    """

    patience: float
    connection: Connection | None = None
    since: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class EngineProcess:
    """An :class:`~nextvec.inference.Engine` in a process of its own, started again when it ends.

    Attributes:
        held: states that lay over there at the last answer.

    Args:
        run: the run's folder.
        open_run: called over there; a function that can be pickled.
        listener: as :meth:`subscribe`'s.

    Raises:
        NextvecError: the run cannot be opened; with the message of over there.
    """

    def __init__(self, run: Path, open_run: Callable[[Path], Engine], listener: StatusListener | None = None) -> None:
        self._listener: StatusListener = listener or (lambda _status, _detail: None)
        self._run, self._open = run, open_run
        self._front, self._aside = _Wire(ANSWER_SECONDS), _Wire(READ_SECONDS)
        self._labels, self._texts = _Wire(ANSWER_SECONDS), _Wire(READ_SECONDS)
        self._wires = (self._front, self._aside, self._labels, self._texts)
        self._numbers, self._life = itertools.count(), 0
        self._gone: deque[int] = deque()
        self.held = 0
        self._last_end, self._retired = "", False
        self._process: BaseProcess | None = None
        self._fault = "it has not begun"
        self._facts: Json = {}
        self._begun, self._closing = threading.Event(), threading.Event()
        self._refused: Exception | None = None
        # The kernel ends a child with the thread that started it, so it is one thread that starts them all.
        self._keeper = threading.Thread(target=self._keep, name=f"keeper {run.name}", daemon=True)
        self._keeper.start()
        atexit.register(self.close)
        self._begun.wait()
        if self._refused is not None:
            raise self._refused
        self.bank = Bank.open(self._facts["bank"])
        self.digest, self.weights = str(self._facts["digest"]), self._facts["weights"]
        self.context: int | None = self._facts["context"]

    @property
    def dim(self) -> int:
        return self.bank.dim

    @property
    def encoder_fingerprint(self) -> str:
        return self.bank.manifest.encoder_fingerprint

    @property
    def place(self) -> ComputePlace:
        """Its own process, if that runs."""
        pid = self._process.pid if self.fault is None and self._process is not None else None
        return ComputePlace(isolated=True, pid=pid, last_end=self._last_end)

    @property
    def life(self) -> int:
        """Number of the process, from 1."""
        return self._life

    @property
    def retired(self) -> bool:
        """Whether another engine answers in its place."""
        return self._retired

    def subscribe(self, listener: StatusListener) -> None:
        """Call ``listener`` in a thread when the process has ``ended``, was ``restarted``, or its start was ``refused``.

        The second argument is one line for the log. The states of the process are gone in all three cases.
        """
        self._listener = listener

    def retire(self) -> None:
        """Count all states as lost: another engine answers from now on."""
        self._retired = True

    @property
    def fault(self) -> str | None:
        """Why it cannot be asked now; None where it can."""
        return None if self._front.connection is not None else self._fault

    def session(self) -> RemoteSession:
        """A session that has read nothing."""
        session = RemoteSession(self, next(self._numbers), self._life)
        weakref.finalize(session, self._gone.append, session.number)
        return session

    def restore(self, data: bytes) -> RemoteSession:
        """:meth:`nextvec.inference.Engine.restore`.

        Raises:
            DataError: bytes that the engine refuses.
            EndedError: the process has ended.
        """
        session = self.session()
        try:
            said, _ = self._ask(self._aside, {"do": "restore", "session": session.number}, data, session.life)
        except EndedError:
            raise
        except ServingError as error:
            raise DataError(str(error)) from None
        session.length, session.num_bytes = said["length"], said["bytes"]
        return session

    def answers(self, requests: Sequence[PredictionRequest]) -> list[list[Expected] | Exception]:
        """:meth:`nextvec.inference.Engine.answers`; of a process that ends meanwhile, :class:`EndedError` to everybody."""
        life = self._life
        here = [request for request in requests if request.state.engine is self and request.state.life == life]
        given: dict[int, list[Expected] | Exception] = {}
        try:
            given = dict(zip(map(id, here), self._answers(here, life), strict=True)) if here else {}
        except EndedError as error:
            given = {id(request): error for request in here}
        lost = EndedError("this state ended with the engine's process")
        return [given.get(id(request), lost) for request in requests]

    def catch_up(self, session: RemoteSession, vectors: np.ndarray) -> None:
        """:meth:`RemoteSession.catch_up`."""
        said, _ = self._ask(self._aside, {"do": "catch_up", "session": session.number}, vectors, session.life)
        session.length, session.num_bytes = said["length"], said["bytes"]

    def snapshot(self, session: RemoteSession) -> bytes:
        """:meth:`RemoteSession.snapshot`."""
        return self._ask(self._aside, {"do": "snapshot", "session": session.number}, life=session.life)[1]

    def nearest(self, vectors: np.ndarray) -> Int64[np.ndarray, " R"]:
        """:meth:`nextvec.inference.Engine.nearest`.

        Raises:
            NextvecError: a vector that cannot be read; the process has ended.
        """
        return np.array(self._ask(self._labels, {"do": "nearest"}, vectors)[0]["rows"], np.int64)

    def cut(self, text: str) -> list[str]:
        """:meth:`nextvec.inference.Engine.cut`.

        Raises:
            NextvecError: an empty text, no encoder, or the process has ended.
        """
        return self._ask(self._texts, {"do": "cut", "text": text})[0]["chunks"]

    def encode_chunks(self, chunks: Sequence[str]) -> Float32[np.ndarray, "T D"]:
        """:meth:`nextvec.inference.Engine.encode_chunks`.

        Raises:
            NextvecError: no encoder, or the process has ended.
        """
        return _rows(self._ask(self._texts, {"do": "encode", "chunks": list(chunks)})[1], self.dim)

    def close(self) -> None:
        """End the process and wait for that; whoever still asks is told so."""
        atexit.unregister(self.close)
        self._closing.set()
        self._keeper.join(5.0)

    def _answers(self, requests: Sequence[PredictionRequest], life: int) -> list[list[Expected] | Exception]:
        asked = [(q.state.number, len(q.rows), q.k) for q in requests]
        rows = np.concatenate([q.rows for q in requests])
        said, _ = self._ask(self._front, {"do": "answers", "asked": asked, "gone": self._forgotten()}, rows, life)
        self.held = said["held"]
        answers: list[list[Expected] | Exception] = []
        for request, answer in zip(requests, said["answers"], strict=True):
            if "error" in answer:
                answers.append(_error(answer))
                continue
            request.rows = request.rows[:0]
            request.state.length, request.state.num_bytes = answer["length"], answer["bytes"]
            answers.append([Expected.of(self.bank, *found) for found in zip(answer["rows"], answer["scores"], strict=True)])
        return answers

    def _forgotten(self) -> list[int]:
        return [self._gone.popleft() for _ in range(len(self._gone))]

    def _ask(self, wire: _Wire, request: Json, given: np.ndarray | bytes = b"", life: int | None = None) -> tuple[Json, bytes]:
        with wire.lock:
            connection = wire.connection
            if connection is None:
                raise EndedError(self._fault)
            if life not in (None, self._life):
                raise EndedError("this state ended with the engine's process")
            wire.since = time.monotonic()
            try:
                connection.send_bytes(_packed(request, given if isinstance(given, bytes) else _bytes(given)))
                said, payload = _unpacked(connection.recv_bytes(MOST_REPLY))
            except (OSError, EOFError):
                raise EndedError("the engine's process ended during the request") from None
            finally:
                wire.since = None
        if "error" in said:
            raise _error(said)
        return said, payload

    # In the keeper's thread.

    def _keep(self) -> None:
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._start()
            except Exception as error:
                if not self._begun.is_set():
                    self._refused = error
                    self._begun.set()
                    return
                self._fault = str(error)
                self._listener("refused", f"its process cannot be started again: {error}")
            else:
                if self._begun.is_set():
                    self._listener("restarted", f"its process is there again, number {self._life}")
                self._begun.set()
                self._watch()
            pause = FIRST_PAUSE if time.monotonic() - began > SOUND_SECONDS else min(LONGEST_PAUSE, 2 * pause)
            self._closing.wait(pause)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in self._wires]
        theirs = [its for _, its in pipes]
        front = pipes[0][0]
        given = (self._run, self._open, torch.get_num_threads(), theirs)
        process = context.Process(target=_serve, args=given, name=f"engine {self._run.name}", daemon=True)
        process.start()
        for its in theirs:
            its.close()
        began, hung = time.monotonic(), False
        try:
            while not front.poll(WATCH_SECONDS):
                hung = hung or time.monotonic() - began > OPEN_SECONDS
                if hung or self._closing.is_set():
                    process.kill()
            facts, _ = _unpacked(front.recv_bytes(MOST_REPLY))
        except (OSError, EOFError):
            process.join()
            how = f"it took more than {OPEN_SECONDS:g} s" if hung else _how(process)
            raise RunError(f"{self._run}: the engine's process ended while it opened the run ({how})") from None
        if "error" in facts:
            process.join()
            raise _error(facts)
        if self._facts and facts != self._facts:
            process.kill()
            raise RunError(f"{self._run} holds another model than the one that was served; reload it")
        self._facts, self._process = facts, process
        self._life += 1
        for wire, (mine, _) in zip(self._wires, pipes, strict=True):
            wire.connection = mine

    def _watch(self) -> None:
        """Until the process has ended: by itself, because it hung, or because the server closes."""
        process = self._process
        assert process is not None
        hung = 0.0  # seconds that it was waited for
        while not wait([process.sentinel], WATCH_SECONDS):
            now = time.monotonic()
            waits = [(wire, wire.since) for wire in self._wires]
            late = [wire.patience for wire, since in waits if since is not None and now - since > wire.patience]
            hung = hung or max(late, default=0.0)
            if hung or self._closing.is_set():
                process.kill()
        process.join()
        self._last_end = f"the process did not answer for {hung:g} s" if hung else f"the process was ended: {_how(process)}"
        self._fault = f"the engine's process has ended ({self._last_end}); it is being started again"
        for wire in self._wires:
            connection, wire.connection = wire.connection, None
            assert connection is not None
            with wire.lock:  # who asks has seen the end of the stream by now
                connection.close()
        if not self._closing.is_set():
            self._listener("ended", self._fault)


def _how(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


# What is said


def _packed(said: Json, payload: bytes = b"") -> bytes:
    """Four bytes of length, JSON of that length, and whatever else there is."""
    head = orjson.dumps(said)
    return b"".join((len(head).to_bytes(4, "little"), head, payload))


def _unpacked(frame: bytes) -> tuple[Json, bytes]:
    size = 4 + int.from_bytes(frame[:4], "little")
    return orjson.loads(frame[4:size]), frame[size:]


def _bytes(rows: np.ndarray) -> bytes:
    return np.ascontiguousarray(rows, np.float32).tobytes()


def _rows(payload: bytes, dim: int) -> Float32[np.ndarray, "T D"]:
    return np.frombuffer(payload, np.float32).reshape(-1, dim).copy()


def _told(error: Exception) -> Json:
    return {"error": type(error).__name__, "message": str(error), "known": isinstance(error, NextvecError)}


def _error(said: Json) -> NextvecError:
    """What went wrong over there; kinds that nobody tells apart are one."""
    if said["error"] == NotFiniteError.__name__:
        return NotFiniteError(said["message"])
    return ServingError(said["message"] if said["known"] else f"{said['error']}: {said['message']}")


# In the other process


def _serve(run: Path, open_run: Callable[[Path], Engine], threads: int, connections: Sequence[Connection]) -> None:
    front, *others = connections
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal tells all of its processes; the server says when to end
    with suppress(OSError):  # Linux alone
        Path("/proc/self/oom_score_adj").write_bytes(EXPENDABLE)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(threads)
    try:
        engine = open_run(run)
    except Exception as error:
        front.send_bytes(_packed(_told(error)))
        return
    facts = {"digest": engine.digest, "weights": engine.weights, "context": engine.context, "bank": str(engine.bank.path)}
    front.send_bytes(_packed(facts))
    sessions: dict[int, Session] = {}
    for connection in others:
        threading.Thread(target=_listen, args=(engine, sessions, connection), daemon=True).start()
    _listen(engine, sessions, front)


def _listen(engine: Engine, sessions: dict[int, Session], connection: Connection) -> None:
    with suppress(OSError, EOFError):  # the server has let go
        while True:
            said, payload = _unpacked(connection.recv_bytes(MOST_REPLY))
            try:
                reply = _replied(engine, sessions, said, payload)
            except Exception as error:
                reply = _packed(_told(error))
            connection.send_bytes(reply)


def _replied(engine: Engine, sessions: dict[int, Session], said: Json, payload: bytes) -> bytes:
    if said["do"] == "answers":
        for number in said["gone"]:
            sessions.pop(number, None)
        return _answered(engine, sessions, said["asked"], _rows(payload, engine.dim))
    if said["do"] == "catch_up":
        session = _session(engine, sessions, said["session"])
        session.catch_up(_rows(payload, engine.dim))
        return _packed({"length": session.length, "bytes": session.num_bytes})
    if said["do"] == "restore":
        session = sessions[said["session"]] = engine.restore(payload)
        return _packed({"length": session.length, "bytes": session.num_bytes})
    if said["do"] == "snapshot":
        return _packed({}, _session(engine, sessions, said["session"]).snapshot())
    if said["do"] == "nearest":
        return _packed({"rows": engine.nearest(_rows(payload, engine.dim)).tolist()})
    if said["do"] == "cut":
        return _packed({"chunks": engine.cut(said["text"])})
    return _packed({}, _bytes(engine.encode_chunks(said["chunks"])))


def _session(engine: Engine, sessions: dict[int, Session], number: int) -> Session:
    session = sessions.get(number)
    if session is None:
        session = sessions[number] = engine.session()
    return session


def _answered(engine: Engine, sessions: dict[int, Session], asked: Sequence[Sequence[int]], rows: np.ndarray) -> bytes:
    requests: list[PredictionRequest] = []
    first = 0
    for number, count, k in asked:
        requests.append(PredictionRequest(_session(engine, sessions, number), rows[first : first + count], k))
        first += count
    answers: list[Json] = []
    for request, answer in zip(requests, engine.answers(requests), strict=True):
        if isinstance(answer, Exception):
            answers.append(_told(answer))
            continue
        found = {"rows": [e.row for e in answer], "scores": [e.score for e in answer]}
        answers.append({**found, "length": request.state.length, "bytes": request.state.num_bytes})
    return _packed({"answers": answers, "held": len(sessions)})
