"""The child's side of an isolated engine: opens the run and answers the server's messages until the process is killed."""

import ctypes
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from nextvec.inference import Engine, PredictionRequest, Session
from nextvec.serving.engine_messages import MOST_BYTES, Json, bytes_to_rows, error_to_json, pack, rows_to_bytes, unpack

EXPENDABLE = b"700"  # of 1000: the kernel ends this process before the server when memory runs out
PR_SET_PDEATHSIG = 1


def serve(run: Path, open_run: Callable[[Path], Engine], threads: int, connections: Sequence[Connection]) -> None:
    """Open the run, send its facts (or the error) on the first connection, then answer on each in a thread of its own.

    Args:
        threads: of torch.
        connections: one for each kind of request, so that none waits behind another.
    """
    front, *others = connections
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal signals all of its processes; the server decides when to end
    with suppress(OSError):  # Linux alone
        Path("/proc/self/oom_score_adj").write_bytes(EXPENDABLE)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(threads)
    try:
        engine = open_run(run)
    except Exception as error:
        front.send_bytes(pack(error_to_json(error)))
        return
    facts = {
        "digest": engine.digest,
        "weights": engine.weights,
        "context": engine.context,
        "bank": str(engine.bank.path),
        "names_rows": engine.names_rows,
    }
    front.send_bytes(pack(facts))
    sessions: dict[int, Session] = {}
    for connection in others:
        threading.Thread(target=_listen, args=(engine, sessions, connection), daemon=True).start()
    _listen(engine, sessions, front)


def _listen(engine: Engine, sessions: dict[int, Session], connection: Connection) -> None:
    with suppress(OSError, EOFError):  # the server has closed the connection
        while True:
            content, payload = unpack(connection.recv_bytes(MOST_BYTES))
            try:
                reply = _reply(engine, sessions, content, payload)
            except Exception as error:
                reply = pack(error_to_json(error))
            connection.send_bytes(reply)


def _reply(engine: Engine, sessions: dict[int, Session], content: Json, payload: bytes) -> bytes:
    if content["do"] == "answers":
        for number in content["released"]:
            sessions.pop(number, None)
        return _answers(engine, sessions, content["requests"], bytes_to_rows(payload, engine.dim))
    if content["do"] == "catch_up":
        session = _session(engine, sessions, content["session"])
        session.catch_up(bytes_to_rows(payload, engine.dim))
        return pack({"length": session.length, "bytes": session.num_bytes})
    if content["do"] == "restore":
        session = sessions[content["session"]] = engine.restore(payload)
        return pack({"length": session.length, "bytes": session.num_bytes})
    if content["do"] == "snapshot":
        return pack({}, _session(engine, sessions, content["session"]).snapshot())
    if content["do"] == "nearest":
        return pack({"rows": engine.nearest(bytes_to_rows(payload, engine.dim)).tolist()})
    if content["do"] == "cut":
        return pack({"chunks": engine.cut(content["text"])})
    return pack({}, rows_to_bytes(engine.encode_chunks(content["chunks"])))


def _session(engine: Engine, sessions: dict[int, Session], number: int) -> Session:
    session = sessions.get(number)
    if session is None:
        session = sessions[number] = engine.session()
    return session


def _answers(engine: Engine, sessions: dict[int, Session], asked: Sequence[Sequence[int]], rows: np.ndarray) -> bytes:
    requests: list[PredictionRequest] = []
    first = 0
    for number, count, k, because in asked:
        session = _session(engine, sessions, number)
        requests.append(PredictionRequest(session, rows[first : first + count], k, because=because))
        first += count
    answers: list[Json] = []
    for request, answer in zip(requests, engine.answers(requests), strict=True):
        if isinstance(answer, Exception):
            answers.append(error_to_json(answer))
            continue
        found = {
            "rows": [e.row for e in answer],
            "scores": [e.score for e in answer],
            "probabilities": [e.probability for e in answer],
            "because": [e.because for e in answer],
        }
        answers.append({**found, "length": request.state.length, "bytes": request.state.num_bytes})
    return pack({"answers": answers, "held": len(sessions)})
