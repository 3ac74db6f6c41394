"""Counts of the last quarter of an hour, second by second, in bounded memory, for the dashboard.

A request costs one addition in a flat array. The seconds of answers are counted in bins, each a ninth wider than the one
before, so a percentile is off by a twentieth at most.
"""

# Axes: T seconds, C columns, B bins, P points.

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import log

import numpy as np
from jaxtyping import Float64, Int64

SECONDS = 900
ROWS = SECONDS + 1  # one more, for the second that is being filled
DECADE = 20  # bins of a tenfold
LEAST, BINS = 1e-4, 5 * DECADE  # seconds: 0.1 ms to 10 s; the first and the last bin take the values outside
SCALE = DECADE / log(10)
ANSWERS = frozenset({"append", "predict", "once", "batch"})  # by name of their handlers
NO_TIME = frozenset({429, 503, 504})
REFUSED, FAILED, COLUMNS = BINS, BINS + 1, BINS + 2
MOST_SESSIONS = 20


@dataclass(frozen=True)
class Point:
    """One stretch of time.

    Attributes:
        answers, refused, failed: counts of requests; refused for want of time, failed by a fault of the server.
        p50, p95, p99: seconds of the answers; None without any.
    """

    answers: int
    refused: int
    failed: int
    p50: float | None
    p95: float | None
    p99: float | None


class Recent:
    """Counts of the last :data:`SECONDS`, and the latest sessions with a request. Used from the loop alone.

    Attributes:
        started: when counting began, UTC, for display.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.started = datetime.now(UTC)
        self._clock = clock
        self._began = clock()
        self._second = int(self._began)
        self._base = self._second % ROWS * COLUMNS
        self._counts = array("q", bytes(8 * ROWS * COLUMNS))
        self._sessions: OrderedDict[str, float] = OrderedDict()

    def saw(self, route: str, status: int, seconds: float, session: str | None = None) -> None:
        """Count one request by the name of its handler, and remember the session that was answered."""
        if status in NO_TIME:
            self.refuse()
        elif status >= 500:
            self._counts[self._row(self._clock()) + FAILED] += 1
        elif status == 200 and route in ANSWERS:
            now = self._clock()
            place = int(log(seconds / LEAST) * SCALE) if seconds > LEAST else 0
            self._counts[self._row(now) + (place if place < BINS else BINS - 1)] += 1
            if session is not None:
                self._sessions[session] = now
                self._sessions.move_to_end(session)
                if len(self._sessions) > MOST_SESSIONS:
                    self._sessions.popitem(last=False)

    def refuse(self) -> None:
        """Count a request that was refused for want of time."""
        self._counts[self._row(self._clock()) + REFUSED] += 1

    @property
    def uptime(self) -> float:
        """Seconds since counting began."""
        return self._clock() - self._began

    def sessions(self) -> list[tuple[str, float]]:
        """The latest sessions with a request, newest first, and the seconds since then."""
        now = self._clock()
        return [(session, now - at) for session, at in reversed(self._sessions.items())]

    def points(self, seconds: int, step: int) -> list[Point]:
        """The last ``seconds`` in stretches of ``step`` seconds, oldest first, without the present second."""
        table = self._table(seconds).reshape(-1, step, COLUMNS).sum(1)
        return [_point(row) for row in table]

    def histogram(self, seconds: int) -> Int64[np.ndarray, " B"]:
        """How many answers of the last ``seconds`` fell into each bin; see :func:`edges`."""
        return self._table(seconds)[:, :BINS].sum(0)

    def _table(self, seconds: int) -> Int64[np.ndarray, "T C"]:
        self._row(self._clock())
        whole = np.frombuffer(self._counts, np.int64).reshape(ROWS, COLUMNS)
        return whole[np.arange(self._second - seconds, self._second) % ROWS]

    def _row(self, now: float) -> int:
        """Where the row of the present second begins; rows of skipped seconds are set to 0."""
        second = int(now)
        if second != self._second:
            for passed in range(max(self._second + 1, second - SECONDS), second + 1):
                base = passed % ROWS * COLUMNS
                self._counts[base : base + COLUMNS] = _EMPTY
            self._second, self._base = second, second % ROWS * COLUMNS
        return self._base


_EMPTY = array("q", bytes(8 * COLUMNS))


def edges() -> Float64[np.ndarray, " edges"]:
    """Seconds at which bins begin, and the last one ends."""
    return LEAST * 10 ** (np.arange(BINS + 1) / DECADE)


def percentiles(counts: Int64[np.ndarray, " B"], shares: Sequence[float]) -> list[float | None]:
    """The quantiles ``shares`` of the seconds that answers took; None without answers."""
    total = int(counts.sum())
    if not total:
        return [None] * len(shares)
    reached = np.cumsum(counts)
    found: list[float | None] = []
    for share in shares:
        place = int(np.searchsorted(reached, share * total))
        inside = 1 - (reached[place] - share * total) / counts[place]
        found.append(float(LEAST * 10 ** ((place + inside) / DECADE)))
    return found


def _point(row: Int64[np.ndarray, " C"]) -> Point:
    counts = row[:BINS]
    return Point(int(counts.sum()), int(row[REFUSED]), int(row[FAILED]), *percentiles(counts, (0.5, 0.95, 0.99)))
