"""From observations of requests to unit outcomes: one unit per session.

Sessions are assigned to arms, so a session counts at most once in each stream. Which of its requests counts must not depend on
what happened to them:

- ``assign``: the first request.
- ``fail``: the first failure, at once. A session that closes or has been observed for a fixed time without a failure
  (:meth:`Units.settle`) is a good unit; later failures do not count. So the time at risk is fixed in advance. Sessions of a
  better canary stay at risk longer. For first failures the ratio of the arms is ``rho exp((1 - rho) H)`` times that of the
  weights, where ``H`` is the stable arm's cumulative hazard. This is at most 1 for every ``rho <= 1`` while ``H <= 1``, which
  means while fewer than 63 % of the sessions fail.
- ``slow``, ``miss``, ``unlabelled``: one request that a hash selects in advance (:func:`selected`). A prediction without
  a label is ``unlabelled``, so labels that are lost on one arm are visible.
- mirrored pairs: over the first 16 mirrored requests of the session, the canary's share of bad ones minus stable's. The pair
  counts with the 16th request, or earlier when the session closes or settles.

After a restart a process does not know its sessions; a session that continues may count once more.

**Sessions that change arms** rebuild their state on the other model. This time is caused by the rollout, not by the model, so
such a session gives no ``slow`` unit after the change. The canary then has fewer of the older sessions, by a known share:
when the weight was between ``low`` and ``high`` since a session began, ``low`` of every ``low + 100 - high`` sessions that
kept their arm are the canary's (:func:`unmoved_weight`). The test uses this weight.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from nextvec.errors import ServingError
from nextvec.rollout.evidence import UnitOutcome
from nextvec.rollout.guardrails import ASSIGN, FAIL, NEITHER, PAIRED, SLOW, STABLE
from nextvec.rollout.threshold import Threshold

EDGES = (32, 256)  # vectors
MOST_MIRRORED = 16  # requests of one session: few, because the evidence counts pairs by value


def selected(salt: str, session: str) -> int:
    """Which request of a session counts, from 0: request ``k`` or a later one with probability ``1 / (k + 1)``.

    So half of all sessions count with their first request, and a session of ``n`` requests has a unit with probability
    ``n / (n + 1)``, although its length is not known in advance.
    """
    digest = blake2b(session.encode(), key=salt.encode()[:64], person=b"drawn", digest_size=8).digest()
    return int(2.0**64 / (int.from_bytes(digest) + 1)) - 1


def unmoved_weight(low: float, high: float) -> float:
    """The canary's share, in percent, of the sessions that kept their arm while the weight was between ``low`` and ``high``."""
    return 100 * low / (low + 100 - high)


def band(vectors: int, edges: tuple[int, ...] = EDGES) -> str:
    """The stratum of a context with so many vectors: ``0-32``, ``33-256`` or ``257-``."""
    low = 0
    for edge in edges:
        if vectors <= edge:
            return f"{low}-{edge}"
        low = edge + 1
    return f"{low}-"


def bands(edges: tuple[int, ...] = EDGES) -> tuple[str, ...]:
    """All strata of :func:`band`."""
    return tuple(band(vectors, edges) for vectors in (*edges, edges[-1] + 1))


@dataclass
class _Session:
    """The history of one session, as far as later units depend on it."""

    selected: int
    arm: str
    weight: float
    stratum: str
    segment: int
    low: float
    high: float
    started: float
    moved: bool = False
    failed: bool = False
    settled: bool = False
    counts: dict[str, int] = field(default_factory=dict[str, int])  # index of the newest observation, by stream
    mirrored: dict[str, list[int]] = field(default_factory=dict[str, list[int]])


class Units:
    """The open sessions of one router in one rollout: takes every observation and returns the outcomes that count.

    Attributes:
        thresholds: of slow answers, by stratum.

    Args:
        rollout: id; the salt of :func:`selected`.
        clock: seconds, monotonic; read at a session's first observation and by :meth:`settle`.
    """

    def __init__(
        self,
        rollout: str,
        thresholds: Mapping[str, Threshold] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.thresholds = dict(thresholds or {})
        self._rollout, self._clock = rollout, clock
        self._sessions: dict[str, _Session] = {}
        self._unsettled: deque[_Session] = deque()  # in order of their first observation

    def __len__(self) -> int:
        return len(self._sessions)

    def observe(
        self, stream: str, arm: str, session: str, weight: float, value: float, stratum: str = "all", segment: int = 0
    ) -> UnitOutcome | None:
        """The outcome that an observation is; None if it does not count.

        Args:
            stream: ``assign``, ``fail`` and ``slow`` once a request, ``miss`` once a label, ``unlabelled`` once a prediction.
            arm, weight, segment: of the request; the weight in percent.
            value: for ``slow`` a duration, always in the same unit. For other streams 0 is good and every other value, NaN
                included, is bad.

        Raises:
            ServingError: unknown stream or arm, or an impossible weight.
        """
        outcome = UnitOutcome(stream, arm, weight, value != 0, stratum, segment)  # checked before the session is changed
        unit = self._routed(session, arm, weight, stratum, segment)
        index = unit.counts[stream] = unit.counts.get(stream, -1) + 1
        if stream == FAIL:
            if unit.settled:
                return None
            is_first, unit.failed = outcome.bad and not unit.failed, unit.failed or outcome.bad
            return outcome if is_first else None
        if stream == SLOW:
            return self._timed(unit, value) if index == unit.selected and not unit.moved else None
        if index == (0 if stream == ASSIGN else unit.selected):
            return outcome if stream != ASSIGN else UnitOutcome(stream, arm, weight, True, stratum, segment)
        return None

    def observe_pair(
        self, stream: str, session: str, stable_bad: bool, canary_bad: bool, stratum: str = "all"
    ) -> UnitOutcome | None:
        """The outcome that a mirrored request completes; None if it completes none. Stable serves the session.

        Raises:
            ServingError: the stream has no pairs.
        """
        if stream not in PAIRED:
            raise ServingError(f"a mirrored pair of {stream!r}; only {', '.join(PAIRED)} have pairs")
        unit = self._sessions.get(session) or self._routed(session, STABLE, 0.0, stratum, 0)
        shifts = unit.mirrored.setdefault(stream, [])
        if unit.settled or len(shifts) == MOST_MIRRORED:
            return None
        shifts.append(int(canary_bad) - int(stable_bad))
        return _pair(unit, stream) if len(shifts) == MOST_MIRRORED else None

    def close(self, session: str) -> list[UnitOutcome]:
        """The outcomes that the end of a session settles; empty for an unknown or settled session."""
        unit = self._sessions.pop(session, None)
        return [] if unit is None else _settle(unit)

    def settle(self, seconds: float, most: int) -> list[UnitOutcome]:
        """The outcomes of sessions whose first observation is ``seconds`` or more ago. They do not settle again.

        Whether a session settles depends on the clock alone, not on its outcomes, so the tests keep their guarantees.

        Args:
            most: number of sessions to examine; the others wait for the next call.
        """
        before, outcomes = self._clock() - seconds, list[UnitOutcome]()
        for _ in range(min(most, len(self._unsettled))):
            if self._unsettled[0].started > before:
                break
            outcomes += _settle(self._unsettled.popleft())
        return outcomes

    def _routed(self, session: str, arm: str, weight: float, stratum: str, segment: int) -> _Session:
        unit = self._sessions.get(session)
        if unit is None:
            index = selected(self._rollout, session)
            unit = _Session(index, arm, weight, stratum, segment, weight, weight, self._clock())
            self._sessions[session] = unit
            self._unsettled.append(unit)
            return unit
        unit.moved = unit.moved or arm != unit.arm
        unit.arm, unit.weight, unit.stratum, unit.segment = arm, weight, stratum, segment
        unit.low, unit.high = min(unit.low, weight), max(unit.high, weight)
        return unit

    def _timed(self, unit: _Session, value: float) -> UnitOutcome:
        threshold = self.thresholds.get(unit.stratum, Threshold())
        bad = threshold.is_slow(value, unit.arm)
        if unit.arm == STABLE:
            self.thresholds[unit.stratum] = threshold.after(value)
        return UnitOutcome(SLOW, unit.arm, unmoved_weight(unit.low, unit.high), bad, unit.stratum, unit.segment)


def _settle(unit: _Session) -> list[UnitOutcome]:
    """The outcomes of a session as observed so far; empty if the session was settled before."""
    if unit.settled:
        return []
    unit.settled = True
    pairs = [_pair(unit, stream) for stream, shifts in unit.mirrored.items() if len(shifts) < MOST_MIRRORED]
    if FAIL not in unit.counts or unit.failed:
        return pairs
    return [*pairs, UnitOutcome(FAIL, unit.arm, unit.weight, False, unit.stratum, unit.segment)]


def _pair(unit: _Session, stream: str) -> UnitOutcome:
    shifts = unit.mirrored[stream]
    return UnitOutcome(stream, NEITHER, None, True, unit.stratum, unit.segment, sum(shifts) / len(shifts))
