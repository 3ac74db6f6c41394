"""Bodies of requests as vectors. Nothing here knows a model."""

# Axes: T vectors, D width.

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import msgspec
import numpy as np
from jaxtyping import Float32

from nextvec.errors import DataError
from nextvec.serving.refusal import RefusedError
from nextvec.vectors import as_float32, check_usable
from nextvec.wire.limits import MOST_VECTORS, most_rows
from nextvec.wire.media import BINARY, F16, F32, JSON

MOST_DETAIL = 200  # characters of a decoder's message
T = TypeVar("T")


@dataclass(frozen=True)
class Vectors:
    """The vectors of one append, and the bytes that the log keeps.

    Attributes:
        rows: checked by :func:`nextvec.vectors.check_usable`; not normalized, the engine does that.
        payload: little-endian rows; the request's own bytes if its body was binary.
        half: whether the payload is float16.
        ids: rows of the bank, if the request named rows.
    """

    rows: Float32[np.ndarray, "T D"]
    payload: bytes
    half: bool
    ids: Sequence[int] | None = None

    @property
    def digest(self) -> bytes:
        """16 bytes that identify this payload, to recognize a repeated append."""
        return hashlib.blake2b(self.payload, digest_size=16, person=b"f16" if self.half else b"f32").digest()


def decode(body: bytes, kind: str, dim: int) -> Vectors:
    """The rows of a binary body.

    Args:
        kind: content type.
        dim: values of a row.

    Raises:
        RefusedError: 415 another content type; 413 too many rows; 400 no row, part of a row, a zero row, or a value that is not
            finite.
    """
    if kind not in BINARY:
        raise RefusedError(415, f"content-type must be {F32}, {F16} or {JSON}")
    dtype = np.dtype(BINARY[kind])
    width = dim * dtype.itemsize
    if not body or len(body) % width:
        raise RefusedError(
            400, f"the body has {len(body)} bytes; want a multiple of {width} ({dim} values of {dtype.itemsize} bytes)"
        )
    if len(body) // width > MOST_VECTORS:
        raise RefusedError(413, f"{len(body) // width} vectors in one request; at most {most_rows(dim, dtype.itemsize)}")
    raw = np.frombuffer(body, dtype).reshape(-1, dim)
    return Vectors(_checked(raw.astype(np.float32)), body, dtype.itemsize == 2)


def from_rows(rows: Float32[np.ndarray, "T D"], ids: Sequence[int] | None = None) -> Vectors:
    """Rows that the server has encoded from text or read from the bank; the log keeps them as float32."""
    whole = np.ascontiguousarray(rows, "<f4")
    return Vectors(_checked(whole), whole.tobytes(), False, ids)


def from_lists(values: Sequence[Sequence[float]], dim: int) -> Vectors:
    """Rows of a JSON body.

    Raises:
        RefusedError: 413 too many rows; 400 a row of another width, a zero row, or a value that is not finite.
    """
    if len(values) > MOST_VECTORS:
        raise RefusedError(413, f"{len(values)} vectors in one request; at most {MOST_VECTORS}")
    for n, row in enumerate(values):
        if len(row) != dim:
            raise RefusedError(400, f"vectors[{n}] must be a list of {dim} numbers; it has {len(row)}")
    return from_rows(as_float32(np.array(values, np.float64)))


def check_ids(ids: Sequence[int], rows: int) -> None:
    """
    Args:
        ids: rows that a request names.
        rows: of the bank.

    Raises:
        RefusedError: 413 too many; 400 a row that the bank does not have.
    """
    if len(ids) > MOST_VECTORS:
        raise RefusedError(413, f"{len(ids)} rows in one request; at most {MOST_VECTORS}")
    if not 0 <= min(ids) <= max(ids) < rows:
        raise RefusedError(400, f"rows must be row numbers from 0 to {rows - 1}")


def from_json(body: bytes, kind: type[T]) -> T:
    """A JSON body as the struct that its operation reads.

    Raises:
        RefusedError: 400 not JSON, or not such a struct.
    """
    try:
        return _decoder(kind).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RefusedError(400, f"the body: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """The message of a decoder, which may quote what it has read."""
    return " ".join(str(error).split())[:MOST_DETAIL]


@cache
def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind)


def _checked(rows: Float32[np.ndarray, "T D"]) -> Float32[np.ndarray, "T D"]:
    try:
        check_usable(rows)
    except DataError as error:
        raise RefusedError(400, str(error)) from None
    return rows
