"""The chunks that are expected after a text, at the cost of its new part."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from nextvec.inference import Engine, Expected, Session

REMEMBERED = 16  # sessions; the state of one takes up to a few MB


class TextReader:
    """Reads texts with an engine. A text that continues an earlier one is read from where the earlier one ended.

    Threads may share a reader.

    Args:
        engine: of a bank with text.
        remembered: number of sessions that are kept for texts that continue; the least recently used one is dropped.
    """

    def __init__(self, engine: Engine, remembered: int = REMEMBERED) -> None:
        self._engine = engine
        self._remembered = remembered
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()  # by the digest of the chunks that each has read
        self._lock = Lock()

    def expected(self, text: str, k: int) -> list[Expected]:
        """The ``k`` chunks expected after a text, as :meth:`~nextvec.inference.Session.predict` returns them.

        Raises:
            DataError: an empty text, or a bank without text or of an encoder that is not installed.
            SettingsError: k below 1.
        """
        chunks = self._engine.cut(text)
        digests = _digests(chunks)
        session, read = self._longest(digests[:-1])
        vectors = self._engine.encode_chunks(chunks[read:])
        if len(vectors) > 1:
            # The last chunk of a text that continues may grow, so the session before it is the one to keep.
            session.catch_up(vectors[:-1])
            self._keep(digests[-2], session)
            session = session.copy()
        session.push_many(vectors[-1:])
        return session.predict(k)

    def _longest(self, digests: Sequence[bytes]) -> tuple[Session, int]:
        """A session that has read as many of the first chunks as possible, and their number."""
        with self._lock:
            for read in range(len(digests), 0, -1):
                kept = self._sessions.get(digests[read - 1])
                if kept is not None:
                    self._sessions.move_to_end(digests[read - 1])
                    return kept.copy(), read
        return self._engine.session(), 0

    def _keep(self, digest: bytes, session: Session) -> None:
        with self._lock:
            self._sessions[digest] = session
            self._sessions.move_to_end(digest)
            if len(self._sessions) > self._remembered:
                self._sessions.popitem(last=False)


def _digests(chunks: Sequence[str]) -> list[bytes]:
    """For each number of chunks, a digest of the first ones."""
    digest, found = hashlib.sha256(), list[bytes]()
    for chunk in chunks:
        data = chunk.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
        found.append(digest.digest())
    return found
