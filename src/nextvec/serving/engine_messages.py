"""The messages between a server and the process of an engine: JSON and raw rows. Nothing is unpickled."""

# Axes: T vectors, D width.

from typing import Any

import msgspec
import numpy as np
from jaxtyping import Float32

from nextvec.errors import NextvecError, NotFiniteError, ServingError

MOST_BYTES = 1 << 30  # of one message
Json = dict[str, Any]


def pack(content: Json, payload: bytes = b"") -> bytes:
    """A message: four bytes of length, JSON of that length, and the payload."""
    head = msgspec.json.encode(content)
    return b"".join((len(head).to_bytes(4, "little"), head, payload))


def unpack(message: bytes) -> tuple[Json, bytes]:
    """The content and the payload of a message."""
    size = 4 + int.from_bytes(message[:4], "little")
    return msgspec.json.decode(message[4:size]), message[size:]


def rows_to_bytes(rows: np.ndarray) -> bytes:
    """Vectors [T, D] as a payload of float32."""
    return np.ascontiguousarray(rows, np.float32).tobytes()


def bytes_to_rows(payload: bytes, dim: int) -> Float32[np.ndarray, "T D"]:
    """The vectors of a payload."""
    return np.frombuffer(payload, np.float32).reshape(-1, dim).copy()


def error_to_json(error: Exception) -> Json:
    """An error as the content of a reply."""
    return {"error": type(error).__name__, "message": str(error), "known": isinstance(error, NextvecError)}


def error_from_json(content: Json) -> NextvecError:
    """The error of a reply: NotFiniteError, or ServingError for every other kind."""
    if content["error"] == NotFiniteError.__name__:
        return NotFiniteError(content["message"])
    return ServingError(content["message"] if content["known"] else f"{content['error']}: {content['message']}")
