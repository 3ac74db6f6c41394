"""The contexts of all sessions, in one append log on disk: they are the truth, model state is a cache of them.

A record is a head, the session's name and the rows; it points back to the one
before it of the same session, so memory holds one small entry per session
whatever its length. A position counts bytes over all segments, and a segment is
named by the position of its first byte. Records are written before a request
is acknowledged and synced in groups: a killed process loses nothing that was
acknowledged, a power cut at most what came after the last sync.

The oldest segment is given up once what still lives in it has been written
again at the end, oldest first, so a tombstone never goes before what it buries.
"""

# Axes: T vectors, D width.

import fcntl
import json
import mmap
import os
import secrets
import struct
import weakref
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from nextvec.bank.layout import read_json, write_atomically
from nextvec.errors import ServingError
from nextvec.serving.payload import Vectors

FORMAT = 1
MANIFEST, LOCK, SUFFIX = "contexts.json", "contexts.lock", ".log"
SEGMENT = 64 << 20  # bytes after which a new segment begins
OPEN, APPEND, DELETE, WHOLE = 1, 2, 3, 4  # WHOLE: a whole context in one record, whatever came before
NOTHING = (1 << 64) - 1  # no record before this one
FREE = 64 << 20  # bytes of the disk below which the folder counts as full, so that there is warning before appends fail
NOT_EMPTY = "this session is not empty; delete it first, or restore under another name"
PROBE = 64 << 10  # bytes that must fit after a write that failed, before the log counts as writable again
# crc32 of all that follows, payload bytes, kind, float16, bytes of the name, vectors, seq, vectors so far, the record
# before, digest of the payload.
HEAD = struct.Struct("<IIBBHIQQQ16s")
Parts = tuple[bytes, bytes]  # of a record: the head with the session's name, and the payload


class ConflictError(ServingError):
    """A write that does not fit what the session holds: another seq, an earlier incarnation, a context where there is one."""

    def __init__(self, head: "Head", what: str | None = None) -> None:
        super().__init__(what or f"the next seq of this session is {head.seq + 1}")
        self.head = head


class FullError(ServingError):
    """The log cannot be written; contexts stay readable."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a session stands.

    Attributes:
        seq: appends so far.
        length: vectors so far.
        digest: of the last append's payload.
        first, last: positions of its oldest and newest record.
        bytes: of all its records.
        incarnation: 64 random bits, drawn when the session began; a session that is deleted and made again has others.
            :data:`NOTHING` for one that began before they were drawn.
    """

    seq: int
    length: int
    digest: bytes
    first: int
    last: int
    bytes: int
    incarnation: int


class _Record(NamedTuple):
    """One record.

    ``previous`` is the position of the session's record before this one. OPEN and WHOLE have none before them: theirs holds
    the session's incarnation.
    """

    kind: int
    session: str
    half: bool
    rows: int
    seq: int
    length: int
    previous: int
    digest: bytes
    payload: bytes
    size: int  # of the whole record

    def packed(self) -> Parts:
        name = self.session.encode()
        fields = (self.kind, self.half, len(name), self.rows, self.seq, self.length, self.previous, self.digest)
        head = HEAD.pack(0, len(self.payload), *fields)[4:] + name
        crc = zlib.crc32(self.payload, zlib.crc32(head))
        return crc.to_bytes(4, "little") + head, self.payload


class _Segment:
    def __init__(self, path: Path, start: int) -> None:
        self.path, self.start = path, start
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self.file).st_size
        # A view may outlive the segment's place in the log: the file is closed when nobody holds it any more.
        self.close = weakref.finalize(self, os.close, self.file)

    @property
    def stop(self) -> int:
        return self.start + self.size

    def write(self, parts: Parts) -> None:
        """All of it or nothing: what a full disk leaves half written is cut off again."""
        want = sum(map(len, parts))
        try:
            done = os.pwritev(self.file, parts, self.size)
            while done < want:
                done += os.pwrite(self.file, b"".join(parts)[done:], self.size + done)
        except OSError:
            os.ftruncate(self.file, self.size)
            raise
        self.size += want

    def probe(self) -> None:
        """
        Raises:
            OSError: the next record would not fit.
        """
        try:
            if os.pwrite(self.file, bytes(PROBE), self.size) < PROBE:
                raise OSError("a short write")
        finally:
            os.ftruncate(self.file, self.size)


@dataclass(frozen=True)
class View:
    """A context as it was when it was asked for; may be read in any thread, whatever is appended or given up meanwhile."""

    head: Head
    dim: int
    segments: tuple[_Segment, ...]

    def read(self, start: int = 0) -> Float32[np.ndarray, "T D"]:
        """Vectors ``start:length``."""
        rows = np.empty((self.head.length - start, self.dim), np.float32)
        position, guess = self.head.last, 4096
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

    def _record(self, position: int, guess: int) -> _Record:
        segment = self.segments[bisect_right(self.segments, position, key=lambda s: s.start) - 1]
        at = position - segment.start
        data = os.pread(segment.file, guess, at)
        want = _extent(data, 0)
        if want > len(data):
            data = os.pread(segment.file, want, at)
        record = _parsed(memoryview(data), 0)
        if record is None:
            raise ServingError(f"{segment.path.name} is damaged at byte {at}; restore it from a copy")
        return record


class Contexts:
    """All contexts of one folder; one process holds it at a time.

    Raises:
        ServingError: the folder is held by another process, has another width, encoder or format, or is damaged.
    """

    def __init__(self, folder: Path, dim: int, encoder: str, segment_bytes: int = SEGMENT) -> None:
        self.folder, self.dim, self.segment_bytes = folder, dim, segment_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _held(folder)
        self._heads: dict[str, Head] = {}
        self._live = 0
        self._unsynced: tuple[_Segment, ...] = ()
        self.failure: str | None = None
        self.free = FREE
        self._full: str | None = None  # why the last write failed
        self.cut = 0  # bytes of a torn tail, put aside when the log was opened
        self._segments: tuple[_Segment, ...] = ()
        try:
            _check(folder, dim, encoder)
            self._load()
        except BaseException:
            self._lock.close()
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
        return View(self._heads[session], self.dim, self._segments)

    def open(self, session: str) -> bool:
        """Begin a session; False where there is one.

        Raises:
            FullError: the log cannot be written.
        """
        if session in self._heads:
            return False
        self._append(_Record(OPEN, session, False, 0, 0, 0, secrets.randbelow(NOTHING), bytes(16), b"", 0))
        return True

    def append(self, session: str, vectors: Vectors, seq: int | None = None, incarnation: int | None = None) -> bool:
        """Write one append; False where it is the last one again. Without ``seq`` it is the next one, and never a retry.

        Args:
            incarnation: of the session that is meant; None for whichever has this name.

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
        self._append(
            _Record(APPEND, session, vectors.half, n, head.seq + 1, head.length + n, head.last, digest, vectors.payload, 0)
        )
        return True

    def restore(self, whole: "Whole", before: View | None) -> None:
        """Begin a session with a whole context, in one record.

        Args:
            whole: made by :func:`begun` from ``before``.
            before: the session's view then; None where there was none.

        Raises:
            ConflictError: the session was begun, written or made again since.
            FullError: the log cannot be written.
        """
        head = self._heads.get(whole.record.session)
        if head is not None and (before is None or (head.seq, head.incarnation) != (before.head.seq, before.head.incarnation)):
            raise ConflictError(head, NOT_EMPTY)
        self._append(whole.record, whole.parts)

    def delete(self, session: str) -> bool:
        """Forget a session; False where there is none.

        Raises:
            FullError: the log cannot be written.
        """
        if session not in self._heads:
            return False
        head = self._heads[session]
        self._append(_Record(DELETE, session, False, 0, head.seq, head.length, head.last, bytes(16), b"", 0))
        return True

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(segment.size for segment in self._segments)

    def unsynced(self) -> tuple[_Segment, ...]:
        """Take what was written since the last call, to be given to :meth:`sync`."""
        taken, self._unsynced = self._unsynced, ()
        return taken

    def sync(self, segments: tuple[_Segment, ...]) -> None:
        """Make what was written survive a power cut; may be called in another thread.

        A failed sync may have dropped pages and cannot be tried again and believed (Rebello et al. 2020, "Can
        applications recover from fsync failures?"), so nothing is written after one.
        """
        try:
            for segment in segments:
                os.fdatasync(segment.file)
        except OSError as error:
            self.failure = error.strerror or "input/output error"

    def trouble(self) -> str | None:
        """Why appends fail, or soon will; None where they do not. Call it in the thread that appends."""
        if self.failure is not None:
            return f"the log of contexts cannot be written: {self.failure}"
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < self.free:
            return f"the disk of the sessions has {disk.f_bavail * disk.f_frsize >> 20} MiB left; want {self.free >> 20}"
        if self._full is not None:
            try:
                self._segments[-1].probe()
            except OSError:
                return f"the log of contexts cannot be written: {self._full}"
            self._full = None
        return None

    def wasteful(self) -> bool:
        """More is dead than alive, and a segment can be given up."""
        return len(self._segments) > 1 and self.bytes > 2 * self._live + self.segment_bytes

    def oldest(self) -> list[str]:
        """Sessions that must be :meth:`rewritten <rewrite>` before the oldest segment can be given up."""
        stop = self._segments[0].stop
        return [session for session, head in self._heads.items() if head.first < stop]

    def rewrite(self, whole: "Whole", view: View) -> None:
        """Write a context, read from ``view``, as one record at the end; nothing happens if it has changed since.

        Raises:
            FullError: the log cannot be written.
        """
        if self._heads.get(whole.record.session) is view.head:
            self._append(whole.record, whole.parts)

    def give_up_oldest(self) -> None:
        """Remove the oldest segment, once the rewritten contexts are synced; readers of a view keep theirs open."""
        if len(self._segments) > 1 and not self.oldest():
            self.sync(self.unsynced())
            if self.failure is None:
                self._segments[0].path.unlink()
                self._segments = self._segments[1:]

    def close(self) -> None:
        self.sync(self.unsynced())
        for segment in self._segments:
            segment.close()
        self._lock.close()

    def _append(self, record: _Record, parts: Parts | None = None) -> None:
        if self.failure is not None:
            raise FullError(f"the log cannot be written: {self.failure}")
        try:
            if self._segments[-1].size >= self.segment_bytes:
                self._begin(self._segments[-1].stop)
            segment, parts = self._segments[-1], parts or record.packed()
            position = segment.stop
            segment.write(parts)
        except OSError as error:
            self._full = error.strerror or "input/output error"
            raise FullError(f"the log cannot be written: {self._full}") from None
        self._full = None
        if segment not in self._unsynced:
            self._unsynced = (*self._unsynced, segment)
        self._fold(record._replace(size=sum(map(len, parts))), position)

    def _fold(self, record: _Record, position: int) -> None:
        """What a record does to the table, when it is written and when it is read again: one rule for both."""
        held = self._heads.get(record.session)
        if record.kind == APPEND:
            # A session whose beginning went with an old segment is deleted or whole further on.
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

    def _load(self) -> None:
        starts = sorted(int(path.stem, 16) for path in self.folder.glob(f"*{SUFFIX}"))
        self._segments = tuple(_Segment(self.folder / f"{start:016x}{SUFFIX}", start) for start in starts)
        for segment in self._segments:
            self._scan(segment)
        if not self._segments:
            self._begin(0)

    def _scan(self, segment: _Segment) -> None:
        if not segment.size:
            return
        with mmap.mmap(segment.file, 0, access=mmap.ACCESS_READ) as mapped:
            at = 0
            for record in _records(mapped):
                self._fold(record, segment.start + at)
                at += record.size
            if at == segment.size:
                return
            if segment is not self._segments[-1]:
                raise ServingError(f"{segment.path} is damaged at byte {at}; restore it from a copy")
            aside = segment.path.with_suffix(f".cut-{at:x}")
            write_atomically(aside, mapped[at:])
        self.cut = segment.size - at
        os.ftruncate(segment.file, at)
        segment.size = at

    def _begin(self, start: int) -> None:
        segment = _Segment(self.folder / f"{start:016x}{SUFFIX}", start)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._segments = (*self._segments, segment)


def narrow(rows: Float32[np.ndarray, "T D"]) -> Float[np.ndarray, "T D"]:
    """The same values as little-endian float16 where that loses nothing, else as float32.

    It takes 0.5 s for 100,000 rows of width 384, so it is not called in the event loop.
    """
    with np.errstate(over="ignore"):
        halves = rows.astype("<f2")
    return halves if len(rows) and np.array_equal(halves.astype(np.float32), rows) else rows.astype("<f4", copy=False)


@dataclass(frozen=True, eq=False)
class Whole:
    """A whole context as the bytes of one record. For a long context they take so long to make that a thread makes them."""

    record: _Record
    parts: Parts


def begun(session: str, rows: Float[np.ndarray, "T D"], seq: int, digest: bytes, before: View | None) -> Whole | None:
    """A session that begins with a whole context; None where ``before`` is exactly this one. May be called in any thread.

    Args:
        rows: as :func:`narrow` gives them.
        seq, digest: of the last append, as in :class:`Head`.
        before: what the session holds; None where there is none.

    Raises:
        ConflictError: ``before`` is another context, which is not empty.
    """
    if before is None:
        return _whole(session, rows, seq, digest, secrets.randbelow(NOTHING))
    head = before.head
    if not head.seq:
        return _whole(session, rows, seq, digest, head.incarnation)
    if (head.seq, head.length, head.digest) == (seq, len(rows), digest) and np.array_equal(before.read(), rows):
        return None
    raise ConflictError(head, NOT_EMPTY)


def rewritten(session: str, view: View) -> Whole:
    """A context as one record. May be called in any thread."""
    head = view.head
    return _whole(session, narrow(view.read()), head.seq, head.digest, head.incarnation)


def _whole(session: str, rows: Float[np.ndarray, "T D"], seq: int, digest: bytes, incarnation: int) -> Whole:
    record = _Record(WHOLE, session, rows.itemsize == 2, len(rows), seq, len(rows), incarnation, digest, rows.tobytes(), 0)
    return Whole(record, record.packed())


def _records(mapped: mmap.mmap) -> Iterator[_Record]:
    """Until the end, or the first one that is not whole."""
    at = 0
    with memoryview(mapped) as data:
        while at < len(data):
            record = _parsed(data, at, payload=False)
            if record is None:
                return
            yield record
            at += record.size


def _extent(data: bytes | memoryview, at: int) -> int:
    """Bytes of the record at ``at``, by its head."""
    if len(data) - at < HEAD.size:
        return HEAD.size
    _, payload, _, _, name, *_ = HEAD.unpack_from(data, at)
    return HEAD.size + name + payload


def _parsed(data: memoryview, at: int, payload: bool = True) -> _Record | None:
    """The record at ``at``, or None where it is not whole."""
    stop = at + _extent(data, at)
    if stop > len(data):
        return None
    crc, _, kind, half, name, rows, seq, length, previous, digest = HEAD.unpack_from(data, at)
    with data[at + 4 : stop] as checked:
        if zlib.crc32(checked) != crc:
            return None
    begin = at + HEAD.size
    session = bytes(data[begin : begin + name]).decode("ascii")
    kept = bytes(data[begin + name : stop]) if payload else b""
    return _Record(kind, session, bool(half), rows, seq, length, previous, digest, kept, stop - at)


def _held(folder: Path) -> FileIO:
    lock = FileIO(folder / LOCK, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ServingError(f"{folder} is held by another server; give this one another --sessions folder") from None
    return lock


def _check(folder: Path, dim: int, encoder: str) -> None:
    file, mine = folder / MANIFEST, {"format": FORMAT, "dim": dim, "encoder": encoder}
    if not file.exists():
        write_atomically(file, json.dumps(mine) + "\n")
    found = read_json(file)
    if found != mine:
        raise ServingError(f"{folder} holds sessions of {found}; this model reads {mine}: give it another --sessions folder")
