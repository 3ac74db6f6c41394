"""Requests to a server, as generators of calls. The clients send the calls, each in its own way of waiting."""

# Axes: T vectors, D width.

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np

from nextvec.client.errors import check
from nextvec.vectors import as_float32
from nextvec.wire.media import F16, F32, OCTETS
from nextvec.wire.operations import ModelDescription, ModelList
from nextvec.wire.predictions import PredictionAnswer
from nextvec.wire.sessions import RestoredSession, SessionDescription

SNAPSHOT_MS = 30_000  # deadline of a snapshot: reading a long context takes longer than an answer
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A request that may be repeated.

    Attributes:
        kind: content type of ``content``.
    """

    method: str
    path: str
    content: bytes | None = None
    kind: str = ""
    query: tuple[tuple[str, str], ...] = ()
    deadline_ms: int | None = None

    def arguments(self) -> dict[str, Any]:
        """As ``request`` of httpx takes them."""
        headers = {"content-type": self.kind} if self.kind else {}
        if self.deadline_ms is not None:
            headers["x-deadline-ms"] = str(self.deadline_ms)
        return {
            "method": self.method,
            "url": self.path,
            "content": self.content,
            "headers": headers,
            "params": list(self.query),
        }


Exchange = Generator[Call, httpx.Response, T]
"""Yields calls, is sent their responses, and returns a result. Both clients run the same exchanges."""

_ANSWER = msgspec.json.Decoder(PredictionAnswer)
_SESSION = msgspec.json.Decoder(SessionDescription)
_RESTORED = msgspec.json.Decoder(RestoredSession)
_MODELS = msgspec.json.Decoder(ModelList)


def answer_of(response: httpx.Response) -> PredictionAnswer:
    """
    Raises:
        ServerError: the answer is a problem.
    """
    return _ANSWER.decode(check(response))


def describe(name: str) -> Exchange[SessionDescription]:
    return _SESSION.decode(check((yield Call("GET", f"/v1/sessions/{name}"))))


def begin(name: str) -> Exchange[SessionDescription]:
    return _SESSION.decode(check((yield Call("PUT", f"/v1/sessions/{name}"))))


def restore(name: str, data: bytes) -> Exchange[RestoredSession]:
    call = Call("PUT", f"/v1/sessions/{name}/snapshot", data, OCTETS, deadline_ms=SNAPSHOT_MS)
    return _RESTORED.decode(check((yield call)))


def snapshot(name: str) -> Exchange[bytes]:
    return check((yield Call("GET", f"/v1/sessions/{name}/snapshot", deadline_ms=SNAPSHOT_MS)))


def delete(name: str) -> Exchange[None]:
    check((yield Call("DELETE", f"/v1/sessions/{name}")))


def models() -> Exchange[list[ModelDescription]]:
    return _MODELS.decode(check((yield Call("GET", "/v1/models")))).models


def predict(path: str, vectors: Any, k: int, text: bool, rows: bool, because: int) -> Exchange[PredictionAnswer]:
    """
    Args:
        vectors: ``[T, D]``, the whole context; None for that of a session.
    """
    content, kind = (None, "") if vectors is None else binary(vectors)
    query = (("k", str(k)), ("text", str(int(text))), ("rows", str(int(rows))), ("because", str(because)))
    return answer_of((yield Call("POST", path, content, kind, query)))


def binary(vectors: Any) -> tuple[bytes, str]:
    """Vectors ``[D]`` or ``[T, D]`` as a body and its content type: float16 as float16, every other type as float32."""
    rows = np.atleast_2d(np.asarray(vectors))
    if rows.dtype == np.float16:
        return rows.astype("<f2").tobytes(), F16
    # Float64 and whole numbers beyond float32 keep their direction; the server refuses NaN, infinity and zero vectors.
    return as_float32(rows).astype("<f4").tobytes(), F32
