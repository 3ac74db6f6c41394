"""The time of each session's last request, least recently used first."""

from collections import OrderedDict


class LastUse:
    """A table of sessions by the time of their last request. Used on the event loop alone.

    All operations take constant time, except :meth:`due`, whose time grows with what it returns.
    """

    def __init__(self) -> None:
        self._times: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def touch(self, session: str, now: float) -> None:
        """Note a request at ``now``, in seconds of a monotonic clock."""
        self._times[session] = now
        self._times.move_to_end(session)

    def forget(self, session: str) -> None:
        """Take a session out, if it is there."""
        self._times.pop(session, None)

    def time(self, session: str) -> float | None:
        """When the session was last used; None if it is not in the table."""
        return self._times.get(session)

    def due(self, before: float, most: int, capacity: int | None = None) -> list[str]:
        """Take out and return the sessions last used before ``before``, and the oldest beyond ``capacity``.

        Args:
            most: number of sessions returned at most; the rest stay for the next call.
        """
        taken: list[str] = []
        for _ in range(min(most, len(self._times))):
            session, last = next(iter(self._times.items()))
            if last >= before and (capacity is None or len(self._times) <= capacity):
                break
            del self._times[session]
            taken.append(session)
        return taken
