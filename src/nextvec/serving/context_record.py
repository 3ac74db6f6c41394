"""The format of one record in the log of contexts: a head with a checksum, the session's name, and the payload."""

import struct
import zlib
from typing import NamedTuple

OPEN, APPEND, DELETE, WHOLE = 1, 2, 3, 4  # WHOLE: a whole context in one record; it replaces all earlier ones
NOTHING = (1 << 64) - 1  # a position or an incarnation that does not exist
# crc32 of all that follows, payload bytes, kind, float16, bytes of the name, vectors, seq, vectors so far, the record
# before, digest of the payload.
HEAD = struct.Struct("<IIBBHIQQQ16s")
Parts = tuple[bytes, bytes]  # of a record: the head with the session's name, and the payload


class Record(NamedTuple):
    """One record.

    Attributes:
        half: the payload is float16, else float32.
        rows: vectors in the payload.
        seq, length: appends and vectors of the session, with this record.
        previous: position of the session's record before this one. OPEN and WHOLE begin a chain: there it holds the session's
            incarnation.
        digest: of the append's payload, 16 bytes.
        size: bytes of the whole record; 0 before it is packed.
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
    size: int

    def packed(self) -> Parts:
        """The record as bytes."""
        name = self.session.encode()
        fields = (self.kind, self.half, len(name), self.rows, self.seq, self.length, self.previous, self.digest)
        head = HEAD.pack(0, len(self.payload), *fields)[4:] + name
        crc = zlib.crc32(self.payload, zlib.crc32(head))
        return crc.to_bytes(4, "little") + head, self.payload


def record_size(data: bytes | memoryview, at: int) -> int:
    """Bytes of the record at ``at``, by its head; the size of a head if not even that is there."""
    if len(data) - at < HEAD.size:
        return HEAD.size
    _, payload, _, _, name, *_ = HEAD.unpack_from(data, at)
    return HEAD.size + name + payload


def parse_record(data: memoryview, at: int, payload: bool = True) -> Record | None:
    """The record at ``at``; None if it is incomplete or its checksum is wrong.

    Args:
        payload: copy the payload; without it the record has an empty one.
    """
    stop = at + record_size(data, at)
    if stop > len(data):
        return None
    crc, _, kind, half, name, rows, seq, length, previous, digest = HEAD.unpack_from(data, at)
    with data[at + 4 : stop] as checked:
        if zlib.crc32(checked) != crc:
            return None
    begin = at + HEAD.size
    session = bytes(data[begin : begin + name]).decode("ascii")
    kept = bytes(data[begin + name : stop]) if payload else b""
    return Record(kind, session, bool(half), rows, seq, length, previous, digest, kept, stop - at)
