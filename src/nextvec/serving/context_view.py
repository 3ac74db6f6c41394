"""One session's context as it was at one moment, and whole contexts as single records. Usable in any thread."""

# Axes: T vectors, D width.

import os
import secrets
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from nextvec.errors import ServingError
from nextvec.serving.context_log import Segment
from nextvec.serving.context_record import APPEND, NOTHING, WHOLE, Parts, Record, parse_record, record_size

NOT_EMPTY = "this session is not empty; delete it first, or restore under another name"
GUESS = 4096  # bytes that the first read of a record asks for


@dataclass(frozen=True, slots=True)
class Head:
    """The present end of a session.

    Attributes:
        seq: appends so far.
        length: vectors so far.
        digest: of the last append's payload.
        first, last: positions of its oldest and newest record.
        bytes: of all its records.
        incarnation: 64 random bits, drawn when the session began; a session that is deleted and made again has others.
            :data:`NOTHING` for a session from before incarnations existed.
    """

    seq: int
    length: int
    digest: bytes
    first: int
    last: int
    bytes: int
    incarnation: int


class ConflictError(ServingError):
    """A write that does not fit the session: a wrong seq, an earlier incarnation, or a context where there is one."""

    def __init__(self, head: Head, what: str | None = None) -> None:
        super().__init__(what or f"the next seq of this session is {head.seq + 1}")
        self.head = head


@dataclass(frozen=True)
class View:
    """A context at one moment; later appends and removed segments do not change it."""

    head: Head
    dim: int
    segments: tuple[Segment, ...]

    def read(self, start: int = 0) -> Float32[np.ndarray, "T D"]:
        """Vectors ``start:length``.

        Raises:
            ServingError: a record is damaged.
        """
        rows = np.empty((self.head.length - start, self.dim), np.float32)
        position, guess = self.head.last, GUESS
        while position != NOTHING and len(rows):
            record = self._record(position, guess)
            guess, position = record.size, record.previous if record.kind == APPEND else NOTHING
            first = record.length - record.rows - start
            if record.rows:
                kept = np.frombuffer(record.payload, "<f2" if record.half else "<f4").reshape(-1, self.dim)
                rows[max(first, 0) : first + record.rows] = kept[max(-first, 0) :]
            if first <= 0:
                break
        return rows

    def _record(self, position: int, guess: int) -> Record:
        segment = self.segments[bisect_right(self.segments, position, key=lambda s: s.start) - 1]
        at = position - segment.start
        data = os.pread(segment.file, guess, at)
        want = record_size(data, 0)
        if want > len(data):
            data = os.pread(segment.file, want, at)
        record = parse_record(memoryview(data), 0)
        if record is None:
            raise ServingError(f"{segment.path.name} is damaged at byte {at}; restore it from a copy")
        return record


@dataclass(frozen=True, eq=False)
class WholeContext:
    """A whole context as the bytes of one record. Packing a long one takes long, so a worker thread does it."""

    record: Record
    parts: Parts


def narrow(rows: Float32[np.ndarray, "T D"]) -> Float[np.ndarray, "T D"]:
    """The same values as little-endian float16 if that loses nothing, else as float32.

    It takes 0.5 s for 100,000 rows of width 384: do not call it in the event loop.
    """
    with np.errstate(over="ignore"):
        halves = rows.astype("<f2")
    return halves if len(rows) and np.array_equal(halves.astype(np.float32), rows) else rows.astype("<f4", copy=False)


def first_record(
    session: str, rows: Float[np.ndarray, "T D"], seq: int, digest: bytes, before: View | None
) -> WholeContext | None:
    """The record of a session that begins with a whole context; None if ``before`` is exactly this context.

    Args:
        rows: as :func:`narrow` gives them.
        seq, digest: of the last append, as in :class:`Head`.
        before: the session's present context; None if there is none.

    Raises:
        ConflictError: ``before`` is another context that is not empty.
    """
    if before is None:
        return _whole(session, rows, seq, digest, secrets.randbelow(NOTHING))
    head = before.head
    if not head.seq:
        return _whole(session, rows, seq, digest, head.incarnation)
    if (head.seq, head.length, head.digest) == (seq, len(rows), digest) and np.array_equal(before.read(), rows):
        return None
    raise ConflictError(head, NOT_EMPTY)


def rewritten(session: str, view: View) -> WholeContext:
    """A context as one record."""
    head = view.head
    return _whole(session, narrow(view.read()), head.seq, head.digest, head.incarnation)


def _whole(session: str, rows: Float[np.ndarray, "T D"], seq: int, digest: bytes, incarnation: int) -> WholeContext:
    record = Record(WHOLE, session, rows.itemsize == 2, len(rows), seq, len(rows), incarnation, digest, rows.tobytes(), 0)
    return WholeContext(record, record.packed())
