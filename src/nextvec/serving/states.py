"""Model states in memory: a cache of what contexts say, keyed by session and engine, within a budget of bytes."""

from collections import OrderedDict

from nextvec.serving.answering import SessionState

OVERHEAD = 4096  # bytes of objects around a state's tensors, about
Name = tuple[str, str]  # session, digest of the engine


class States:
    """Least recently used go first. A state that is in use has been taken out, so it cannot be evicted; its bytes count."""

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._held: OrderedDict[Name, tuple[SessionState, int]] = OrderedDict()
        self._digests: dict[str, set[str]] = {}  # of the held states, by session
        self._out: dict[Name, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def take(self, session: str, digest: str) -> SessionState | None:
        """The state, for the caller alone until it is put back; None on a miss."""
        held = self._removed((session, digest))
        if held is None:
            return None
        self._out[session, digest] = held[1]
        return held[0]

    def length(self, session: str, digest: str) -> int:
        """Vectors that the state has read; 0 where there is none."""
        held = self._held.get((session, digest))
        return held[0].length if held is not None else 0

    def put(self, session: str, digest: str, state: SessionState, size: int) -> None:
        """Put back, or put in, a state of ``size`` bytes; others go until all fit."""
        size += OVERHEAD
        self.lose(session, digest)
        self._discard((session, digest))
        self.bytes += size
        self._held[session, digest] = (state, size)
        self._digests.setdefault(session, set()).add(digest)
        while self.bytes > self.budget and self._held:
            self._discard(next(iter(self._held)))

    def lose(self, session: str, digest: str) -> None:
        """What was taken will not come back."""
        self.bytes -= self._out.pop((session, digest), 0)

    def drop(self, session: str | None = None, digest: str | None = None) -> None:
        """Forget the states of a session, at the cost of these, or of an engine, at the cost of all."""
        if session is not None:
            for held in list(self._digests.get(session, ())):
                self._discard((session, held))
        if digest is not None:
            for name in [name for name in self._held if name[1] == digest]:
                self._discard(name)

    def _discard(self, name: Name) -> None:
        held = self._removed(name)
        self.bytes -= held[1] if held is not None else 0

    def _removed(self, name: Name) -> tuple[SessionState, int] | None:
        held = self._held.pop(name, None)
        if held is not None:
            digests = self._digests[name[0]]
            digests.discard(name[1])
            if not digests:
                del self._digests[name[0]]
        return held
