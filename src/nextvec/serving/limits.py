"""What one server process may use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one process.

    Attributes:
        state_bytes: of model states in memory; contexts are on disk.
        budget: seconds that a request may wait before new requests are refused.
        deadline: seconds of a request that names no deadline.
        idle: seconds without a request after which a session counts as ended for a rollout; its context stays.
        session_ttl: seconds without a request, or since the start, after which a session is deleted; None: never.
        max_sessions: sessions that may exist at a time; None: as many as fit on the disk.
    """

    state_bytes: int = 1 << 30
    budget: float = 0.1
    deadline: float = 1.0
    idle: float = 600.0
    session_ttl: float | None = None
    max_sessions: int | None = None
