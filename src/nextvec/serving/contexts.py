"""The index of all sessions' contexts over their log on disk. The log is authoritative; model states are a cache of it.

A record points back to the session's record before it, so the index holds one small entry per session, whatever its length.
Compaction removes the oldest segment after the live contexts in it have been written again at the end of the log, oldest
first, so that a deletion is never removed before the records that it deletes.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path

from nextvec.serving.context_log import ContextLog
from nextvec.serving.context_record import APPEND, DELETE, NOTHING, OPEN, Parts, Record
from nextvec.serving.context_view import NOT_EMPTY, ConflictError, Head, View, WholeContext
from nextvec.serving.payload import Vectors

SEGMENT = 64 << 20  # bytes after which a new segment begins


class Contexts:
    """All contexts of one folder, by session.

    Attributes:
        log: where they are written.

    Raises:
        ServingError: another process holds the folder, its contexts have another width, encoder or format, or it is damaged.
    """

    def __init__(self, folder: Path, dim: int, encoder: str, segment_bytes: int = SEGMENT) -> None:
        self.dim = dim
        self.log = ContextLog(folder, dim, encoder, segment_bytes)
        self._heads: dict[str, Head] = {}
        self._live = 0  # bytes of the records that present contexts need
        try:
            for record, position in self.log.load():
                self._apply(record, position)
        except BaseException:
            self.log.abandon()
            raise

    def __len__(self) -> int:
        return len(self._heads)

    def __iter__(self) -> Iterator[str]:
        return iter(self._heads)

    def __contains__(self, session: str) -> bool:
        return session in self._heads

    def head(self, session: str) -> Head:
        """
        Raises:
            KeyError: no such session.
        """
        return self._heads[session]

    def view(self, session: str) -> View:
        """
        Raises:
            KeyError: no such session.
        """
        return View(self._heads[session], self.dim, self.log.segments)

    def open(self, session: str) -> bool:
        """Begin a session; False if it exists.

        Raises:
            FullError: the log cannot be written.
        """
        if session in self._heads:
            return False
        self._write(Record(OPEN, session, False, 0, 0, 0, secrets.randbelow(NOTHING), bytes(16), b"", 0))
        return True

    def append(self, session: str, vectors: Vectors, seq: int | None = None, incarnation: int | None = None) -> bool:
        """Write one append; False if it repeats the last one. Without ``seq`` it is the next one and never a repetition.

        Args:
            incarnation: of the intended session; None for the present one of this name.

        Raises:
            KeyError: no such session.
            ConflictError: any other seq, the last one with another payload, or another incarnation.
            FullError: the log cannot be written.
        """
        head, digest = self._heads[session], vectors.digest
        if incarnation is not None and incarnation != head.incarnation:
            raise ConflictError(head, "this session was deleted and made again")
        if seq is not None and seq != head.seq + 1:
            if seq == head.seq and seq and digest == head.digest:
                return False
            raise ConflictError(head)
        n = len(vectors.rows)
        self._write(
            Record(APPEND, session, vectors.half, n, head.seq + 1, head.length + n, head.last, digest, vectors.payload, 0)
        )
        return True

    def restore(self, whole: WholeContext, before: View | None) -> None:
        """Begin a session with a whole context, in one record.

        Args:
            whole: from :func:`~nextvec.serving.context_view.first_record` with ``before``.
            before: the session's context at that time; None if there was none.

        Raises:
            ConflictError: the session was begun, written or made again since.
            FullError: the log cannot be written.
        """
        head = self._heads.get(whole.record.session)
        if head is not None and (before is None or (head.seq, head.incarnation) != (before.head.seq, before.head.incarnation)):
            raise ConflictError(head, NOT_EMPTY)
        self._write(whole.record, whole.parts)

    def delete(self, session: str) -> bool:
        """Forget a session; False if there is none.

        Raises:
            FullError: the log cannot be written.
        """
        if session not in self._heads:
            return False
        head = self._heads[session]
        self._write(Record(DELETE, session, False, 0, head.seq, head.length, head.last, bytes(16), b"", 0))
        return True

    def wasteful(self) -> bool:
        """Whether more than half of the log is dead, and a segment can be removed."""
        return len(self.log.segments) > 1 and self.log.bytes > 2 * self._live + self.log.segment_bytes

    def oldest(self) -> list[str]:
        """Sessions that must be rewritten (:meth:`rewrite`) before the oldest segment can be removed."""
        stop = self.log.segments[0].stop
        return [session for session, head in self._heads.items() if head.first < stop]

    def rewrite(self, whole: WholeContext, view: View) -> None:
        """Write a context, read from ``view``, as one record at the end; nothing happens if it has changed since.

        Raises:
            FullError: the log cannot be written.
        """
        if self._heads.get(whole.record.session) is view.head:
            self._write(whole.record, whole.parts)

    def remove_oldest(self) -> None:
        """Remove the oldest segment, if no context needs it any more."""
        if len(self.log.segments) > 1 and not self.oldest():
            self.log.remove_oldest()

    def close(self) -> None:
        """Sync and close the log."""
        self.log.close()

    def _write(self, record: Record, parts: Parts | None = None) -> None:
        parts = parts or record.packed()
        position = self.log.append(parts)
        self._apply(record._replace(size=sum(map(len, parts))), position)

    def _apply(self, record: Record, position: int) -> None:
        """What a record changes in the index; the same for a record that is written and for one that is loaded."""
        held = self._heads.get(record.session)
        if record.kind == APPEND:
            # A session whose first record went with a removed segment is deleted, or written whole, later in the log.
            if held is not None:
                size = held.bytes + record.size
                last = (held.first, position, size, held.incarnation)
                self._heads[record.session] = Head(record.seq, record.length, record.digest, *last)
                self._live += record.size
            return
        self._live -= held.bytes if held is not None else 0
        self._heads.pop(record.session, None)
        if record.kind != DELETE:
            first = (position, position, record.size, record.previous)
            self._heads[record.session] = Head(record.seq, record.length, record.digest, *first)
            self._live += record.size
