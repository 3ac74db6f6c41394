"""Model states in memory: a least-recently-used cache of contexts that were read, within a budget of bytes."""

from collections import OrderedDict

from nextvec.serving.answering import SessionState

OVERHEAD = 4096  # bytes of objects around a state's tensors, about
Key = tuple[str, str]  # session, digest of the engine


class StateCache:
    """States by session and engine. A state in use is taken out and cannot be evicted, but its bytes count.

    Args:
        budget: bytes of all states.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._held: OrderedDict[Key, tuple[SessionState, int]] = OrderedDict()
        self._digests: dict[str, set[str]] = {}  # of the held states, by session
        self._out: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def take(self, session: str, digest: str) -> SessionState | None:
        """The state, for the caller alone until it is put back; None on a miss."""
        held = self._remove((session, digest))
        if held is None:
            return None
        self._out[session, digest] = held[1]
        return held[0]

    def length(self, session: str, digest: str) -> int:
        """Vectors that the state has read; 0 on a miss."""
        held = self._held.get((session, digest))
        return held[0].length if held is not None else 0

    def put(self, session: str, digest: str, state: SessionState, size: int) -> None:
        """Put a state of ``size`` bytes in or back; the least recently used states are evicted until all fit."""
        size += OVERHEAD
        self.lose(session, digest)
        self._discard((session, digest))
        self.bytes += size
        self._held[session, digest] = (state, size)
        self._digests.setdefault(session, set()).add(digest)
        while self.bytes > self.budget and self._held:
            self._discard(next(iter(self._held)))

    def lose(self, session: str, digest: str) -> None:
        """Stop counting a state that was taken and does not come back."""
        self.bytes -= self._out.pop((session, digest), 0)

    def drop(self, session: str | None = None, digest: str | None = None) -> None:
        """Forget the states of a session (the cost grows with its states) or of an engine (with all states)."""
        if session is not None:
            for held in list(self._digests.get(session, ())):
                self._discard((session, held))
        if digest is not None:
            for key in [key for key in self._held if key[1] == digest]:
                self._discard(key)

    def _discard(self, key: Key) -> None:
        held = self._remove(key)
        self.bytes -= held[1] if held is not None else 0

    def _remove(self, key: Key) -> tuple[SessionState, int] | None:
        held = self._held.pop(key, None)
        if held is not None:
            digests = self._digests[key[0]]
            digests.discard(key[1])
            if not digests:
                del self._digests[key[0]]
        return held
