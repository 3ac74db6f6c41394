"""The append log of contexts on disk: segments, their records, and what a full or failing disk does to them.

A position counts bytes over all segments, and a segment is named by the position of its first byte. Records are written
before a request is acknowledged and synced in groups: a killed process loses no acknowledged append, a power cut loses at most
the appends after the last sync.
"""

import fcntl
import json
import mmap
import os
import weakref
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from nextvec.bank.layout import read_json, write_atomically
from nextvec.errors import ServingError
from nextvec.serving.context_record import Parts, Record, parse_record

FORMAT = 1
MANIFEST, LOCK, SUFFIX = "contexts.json", "contexts.lock", ".log"
FREE = 64 << 20  # bytes of the disk below which the folder counts as full: a warning before appends fail
PROBE = 64 << 10  # bytes that must fit after a failed write, before the log counts as writable again


class FullError(ServingError):
    """The log cannot be written; contexts stay readable."""


class Segment:
    """One file of the log."""

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.start = path, start
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self.file).st_size
        # A view may use the segment after the log has removed it: the file is closed with the last reference.
        self.close = weakref.finalize(self, os.close, self.file)

    @property
    def stop(self) -> int:
        """Position after its last byte."""
        return self.start + self.size

    def write(self, parts: Parts) -> None:
        """Append all bytes or none: what a full disk leaves half written is cut off again."""
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


class ContextLog:
    """The segments of one folder; one process holds the folder at a time.

    Attributes:
        failure: why nothing is written any more; None while the log works.
        free: bytes of the disk below which :meth:`trouble` warns.
        cut: bytes of an incomplete last record, moved to a file of their own by :meth:`load`.

    Raises:
        ServingError: another process holds the folder, or its contexts have another width, encoder or format.
    """

    def __init__(self, folder: Path, dim: int, encoder: str, segment_bytes: int) -> None:
        self.folder, self.segment_bytes = folder, segment_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        self.segments: tuple[Segment, ...] = ()
        self.failure: str | None = None
        self.free, self.cut = FREE, 0
        self._full: str | None = None  # why the last write failed
        self._unsynced: tuple[Segment, ...] = ()
        try:
            _check_manifest(folder, dim, encoder)
        except BaseException:
            self._lock.close()
            raise

    def load(self) -> Iterator[tuple[Record, int]]:
        """Open the segments of an earlier process; every record without its payload, and its position.

        Raises:
            ServingError: a record before the last segment's end is damaged.
        """
        starts = sorted(int(path.stem, 16) for path in self.folder.glob(f"*{SUFFIX}"))
        self.segments = tuple(Segment(self.folder / f"{start:016x}{SUFFIX}", start) for start in starts)
        for segment in self.segments:
            yield from self._scan(segment)
        if not self.segments:
            self._begin(0)

    @property
    def bytes(self) -> int:
        """On disk."""
        return sum(segment.size for segment in self.segments)

    def append(self, parts: Parts) -> int:
        """Write a record; its position.

        Raises:
            FullError: the log cannot be written.
        """
        if self.failure is not None:
            raise FullError(f"the log cannot be written: {self.failure}")
        try:
            if self.segments[-1].size >= self.segment_bytes:
                self._begin(self.segments[-1].stop)
            segment = self.segments[-1]
            position = segment.stop
            segment.write(parts)
        except OSError as error:
            self._full = error.strerror or "input/output error"
            raise FullError(f"the log cannot be written: {self._full}") from None
        self._full = None
        if segment not in self._unsynced:
            self._unsynced = (*self._unsynced, segment)
        return position

    def unsynced(self) -> tuple[Segment, ...]:
        """Take the segments that were written since the last call, for :meth:`sync`."""
        taken, self._unsynced = self._unsynced, ()
        return taken

    def sync(self, segments: tuple[Segment, ...]) -> None:
        """Make written records survive a power cut; may be called in another thread.

        A failed sync may have dropped pages, and a later sync that succeeds does not prove that they are on disk (Rebello et
        al. 2020, "Can applications recover from fsync failures?"), so nothing is written after a failed sync.
        """
        try:
            for segment in segments:
                os.fdatasync(segment.file)
        except OSError as error:
            self.failure = error.strerror or "input/output error"

    def trouble(self) -> str | None:
        """Why appends fail or soon will; None if they work. Call it in the thread that appends."""
        if self.failure is not None:
            return f"the log of contexts cannot be written: {self.failure}"
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < self.free:
            return f"the disk of the sessions has {disk.f_bavail * disk.f_frsize >> 20} MiB left; want {self.free >> 20}"
        if self._full is not None:
            try:
                self.segments[-1].probe()
            except OSError:
                return f"the log of contexts cannot be written: {self._full}"
            self._full = None
        return None

    def remove_oldest(self) -> None:
        """Sync everything, then remove the oldest segment; views that use it keep its file open."""
        self.sync(self.unsynced())
        if self.failure is None:
            self.segments[0].path.unlink()
            self.segments = self.segments[1:]

    def close(self) -> None:
        """Sync and close everything."""
        self.sync(self.unsynced())
        self.abandon()

    def abandon(self) -> None:
        """Close everything without a sync: for a log that could not be loaded."""
        for segment in self.segments:
            segment.close()
        self._lock.close()

    def _scan(self, segment: Segment) -> Iterator[tuple[Record, int]]:
        if not segment.size:
            return
        with mmap.mmap(segment.file, 0, access=mmap.ACCESS_READ) as mapped:
            at = 0
            for record in _complete_records(mapped):
                yield record, segment.start + at
                at += record.size
            if at == segment.size:
                return
            if segment is not self.segments[-1]:
                raise ServingError(f"{segment.path} is damaged at byte {at}; restore it from a copy")
            write_atomically(segment.path.with_suffix(f".cut-{at:x}"), mapped[at:])
        self.cut = segment.size - at
        os.ftruncate(segment.file, at)
        segment.size = at

    def _begin(self, start: int) -> None:
        segment = Segment(self.folder / f"{start:016x}{SUFFIX}", start)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.segments = (*self.segments, segment)


def _complete_records(mapped: mmap.mmap) -> Iterator[Record]:
    """The records up to the end, or up to the first incomplete one."""
    at = 0
    with memoryview(mapped) as data:
        while at < len(data):
            record = parse_record(data, at, payload=False)
            if record is None:
                return
            yield record
            at += record.size


def _locked(folder: Path) -> FileIO:
    lock = FileIO(folder / LOCK, "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ServingError(f"{folder} is held by another server; give this one another --sessions folder") from None
    return lock


def _check_manifest(folder: Path, dim: int, encoder: str) -> None:
    file, mine = folder / MANIFEST, {"format": FORMAT, "dim": dim, "encoder": encoder}
    if not file.exists():
        write_atomically(file, json.dumps(mine) + "\n")
    found = read_json(file)
    if found != mine:
        raise ServingError(f"{folder} holds sessions of {found}; this model reads {mine}: give it another --sessions folder")
