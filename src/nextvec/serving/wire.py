"""What travels: binary and JSON bodies to rows, refusals to problems (RFC 9457). Nothing here knows a model."""

# Axes: T vectors, D width.

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float32

from nextvec.errors import DataError, NextvecError
from nextvec.vectors import as_float32, check_usable

F32, F16, JSON = "application/vnd.nextvec.f32", "application/vnd.nextvec.f16", "application/json"
OCTETS = "application/octet-stream"
BINARY = {F32: "<f4", OCTETS: "<f4", F16: "<f2"}
PROBLEM = "application/problem+json"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
INCARNATION = re.compile(r"[0-9a-f]{16}")
MOST_K, MOST_VECTORS = 1_000, 10_000
MOST_ROWS = 100  # that an answer names of those that hold one vector
MOST_JSON = 1 << 20
MOST_BODY = 64 << 20  # whatever the width
MOST_LENGTH = 100_000  # vectors of one session
MOST_SNAPSHOT = 256 << 20  # bytes


def most_body(dim: int) -> int:
    """Bytes of a body at most: ``MOST_VECTORS`` rows of float32, or a JSON body, but never more than ``MOST_BODY``."""
    return min(MOST_BODY, max(MOST_JSON, MOST_VECTORS * dim * 4))


def most_rows(dim: int, itemsize: int = 4) -> int:
    """Rows of a binary body at most, each ``dim`` values of ``itemsize`` bytes."""
    return min(MOST_VECTORS, most_body(dim) // (dim * itemsize))


class RefusedError(NextvecError):
    """A request that is answered with a problem (RFC 9457).

    Attributes:
        status: of the answer.
        members: what stands beside the detail, such as the current ``seq`` of a conflict.
        headers: of the answer, such as ``retry-after``.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.members, self.headers = status, members, headers or {}

    def body(self, request: str) -> bytes:
        """The problem as JSON; ``about:blank`` means that the title is the status's own."""
        title = HTTPStatus(self.status).phrase
        return orjson.dumps(
            {
                "type": "about:blank",
                "title": title,
                "status": self.status,
                "detail": str(self),
                "request": request,
                **self.members,
            }
        )


@dataclass(frozen=True)
class Vectors:
    """Rows of one append, and the bytes they are kept as.

    Attributes:
        rows: usable (:mod:`nextvec.vectors`); of any length, the engine brings them to one.
        payload: little-endian rows, as sent where they were sent in binary.
        half: the payload is float16.
        ids: rows of the bank, where the request named rows.
    """

    rows: Float32[np.ndarray, "T D"]
    payload: bytes
    half: bool
    ids: Sequence[int] | None = None

    @property
    def digest(self) -> bytes:
        """16 bytes that tell this payload from any other, so that a retry is known for one."""
        return hashlib.blake2b(self.payload, digest_size=16, person=b"f16" if self.half else b"f32").digest()


def decode(body: bytes, kind: str, dim: int) -> Vectors:
    """A binary body of little-endian rows.

    Raises:
        RefusedError: 415 another content type; 400 not a whole number of rows, none, too many, not finite, a zero row.
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
    return Vectors(_sound(raw.astype(np.float32)), body, dtype.itemsize == 2)


def from_rows(rows: Float32[np.ndarray, "T D"], ids: Sequence[int] | None = None) -> Vectors:
    """Rows that were made here, of text or of the bank, kept as float32."""
    whole = np.ascontiguousarray(rows, "<f4")
    return Vectors(_sound(whole), whole.tobytes(), False, ids)


def from_json(values: Any, dim: int) -> Vectors:
    """The value of ``vectors``: a list of lists of ``dim`` numbers.

    Raises:
        RefusedError: 400 anything else; 413 too many.
    """
    if not isinstance(values, list) or not values:
        raise RefusedError(400, f"vectors must be a non-empty list of lists of {dim} numbers")
    if len(values) > MOST_VECTORS:
        raise RefusedError(413, f"{len(values)} vectors in one request; at most {MOST_VECTORS}")
    for n, row in enumerate(values):
        if not isinstance(row, list) or len(row) != dim or not all(type(x) in (int, float) for x in row):
            raise RefusedError(400, f"vectors[{n}] must be a list of {dim} numbers")
    try:
        return from_rows(as_float32(np.array(values, np.float64)))
    except OverflowError:
        raise RefusedError(400, "vectors holds a number beyond float64") from None


def from_ids(values: Any, rows: int) -> list[int]:
    """The value of ``rows``: row numbers below ``rows``.

    Raises:
        RefusedError: 400 anything else; 413 too many.
    """
    if not isinstance(values, list) or not values or not all(type(x) is int and 0 <= x < rows for x in values):
        raise RefusedError(400, f"rows must be a non-empty list of row numbers from 0 to {rows - 1}")
    if len(values) > MOST_VECTORS:
        raise RefusedError(413, f"{len(values)} rows in one request; at most {MOST_VECTORS}")
    return values


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object; orjson refuses NaN, invalid UTF-8 and nesting beyond its bound by itself.

    Raises:
        RefusedError: 400 not a JSON object.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise RefusedError(400, "the body is not JSON") from None
    if not isinstance(content, dict):
        raise RefusedError(400, "the body must be a JSON object")
    return content


def named(text: str, what: str = "session") -> str:
    """``text``, if it is a name.

    Raises:
        RefusedError: 400 not 1 to 64 of A-Z a-z 0-9 _ -
    """
    if not NAME.fullmatch(text):
        raise RefusedError(400, f"a {what} is named by 1 to 64 of A-Z a-z 0-9 _ -")
    return text


def whole(text: str | None, name: str, least: int, most: int, otherwise: int) -> int:
    """A query parameter.

    Raises:
        RefusedError: 400 not a whole number from ``least`` to ``most``.
    """
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        raise RefusedError(400, f"{name} must be a whole number from {least} to {most}")
    return int(text)


def incarnation(text: str | None) -> int | None:
    """The parameter ``incarnation``, as a session gives it; None where it is absent.

    Raises:
        RefusedError: 400 not 16 hexadecimal digits.
    """
    if text is None:
        return None
    if not INCARNATION.fullmatch(text):
        raise RefusedError(400, "incarnation must be the 16 hexadecimal digits that PUT and GET of the session give")
    return int(text, 16)


def lengths_of(text: str | None, total: int) -> list[int]:
    """``10,20,30``: how many of ``total`` vectors each context of a batch has.

    Raises:
        RefusedError: 400 absent, no whole numbers, or another sum.
    """
    parts = (text or "").split(",")
    lengths = [whole(part, "each of lengths", 1, MOST_VECTORS, 0) for part in parts]
    if sum(lengths) != total:
        raise RefusedError(400, f"lengths add up to {sum(lengths)}; the body has {total} vectors")
    return lengths


def milliseconds(text: str | None, otherwise: float) -> float:
    """``x-deadline-ms`` in seconds.

    Raises:
        RefusedError: 400 not from 1 to 60,000.
    """
    if text is None:
        return otherwise
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value <= 60_000:
        raise RefusedError(400, "x-deadline-ms must be from 1 to 60000")
    return value / 1e3


def _sound(rows: Float32[np.ndarray, "T D"]) -> Float32[np.ndarray, "T D"]:
    try:
        check_usable(rows)
    except DataError as error:
        raise RefusedError(400, str(error)) from None
    return rows
