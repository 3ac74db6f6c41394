"""From what happened to requests to what counts: one unit a session.

The coin falls once a session, so a session may count once in each stream. Which of its requests that is must not depend on
what happened to them:

- ``assign``: its first request.
- ``fail``: its first failure, at once; or, if it closes or has been observed for so long without one (:meth:`Units.settle`), a
  good unit. Later failures count for nothing: a session is at risk for a time that is fixed beforehand. Sessions that have
  failed are no longer at risk, and those of a better canary stay at risk longer; for first failures the ratio of the arms is
  ``rho exp((1 - rho) Lambda)`` times the weights' where ``Lambda`` is the stable hazard so far, which is at most 1 for every
  ``rho <= 1`` as long as ``Lambda <= 1``: as long as fewer than 63 % of sessions fail.
- ``slow``, ``miss``, ``unlabelled``: one that is drawn by hash beforehand (:func:`drawn`). So a prediction that never got its
  label is not lost: it is ``unlabelled``, and labels that vanish in one arm show.
- mirrored pairs: over the session's first 16 mirrored requests, the canary's share of bad ones minus stable's: counted with the
  16th, or earlier if the session closes or has been observed for so long.

A process that starts anew has forgotten its sessions: one that lives on may count once more.

**Slow** is above the running 95th percentile of the stable arm's own units of that stratum before this request, and for the
canary above 1.2 times it. Then an equal canary is slow less often than stable, one at 1.2 exactly as often, and no tolerance is
needed in the test. Time is taken where the user feels it: a canary that fails and is answered for by stable has both times.

**A session that changes arms** must rebuild its state on the other model. That costs time by reason of the rollout, not of the
model, and the stable arm has nothing like it. Such sessions give no ``slow`` unit any more. That leaves fewer canary sessions
among the old ones, which is known exactly: with weights between ``low`` and ``high`` since a session began, ``low`` of every
``low + 100 - high`` that never moved are the canary's (:func:`settled`), and that is the weight the test is told.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from math import exp, inf, isfinite, log, sqrt

from nextvec.errors import ServingError
from nextvec.rollout.judge import ASSIGN, CANARY, FAIL, NEITHER, PAIRED, SLOW, STABLE, Event

TOLERATED = 1.2
TAIL = 0.05
GAIN = 0.02
EDGES = (32, 256)  # vectors
MOST_MIRRORED = 16  # of one session: so few, because the judge counts shifts by value


def drawn(salt: str, session: str) -> int:
    """Which of a session's requests counts, from 0: ``k`` or later with probability ``1 / (k + 1)``.

    So half of all sessions count with their first, and one of ``n`` requests has a unit with probability ``n / (n + 1)``,
    although nobody knows beforehand how long it will be.
    """
    digest = blake2b(session.encode(), key=salt.encode()[:64], person=b"drawn", digest_size=8).digest()
    return int(2.0**64 / (int.from_bytes(digest) + 1)) - 1


def settled(low: float, high: float) -> float:
    """Percent of canary among sessions that kept their arm while the weight was between ``low`` and ``high``."""
    return 100 * low / (low + 100 - high)


def band(vectors: int, edges: tuple[int, ...] = EDGES) -> str:
    """The stratum of a context of so many vectors: ``0-32``, ``33-256``, ``257-``."""
    low = 0
    for edge in edges:
        if vectors <= edge:
            return f"{low}-{edge}"
        low = edge + 1
    return f"{low}-"


def bands(edges: tuple[int, ...] = EDGES) -> tuple[str, ...]:
    """All strata of :func:`band`."""
    return tuple(band(vectors, edges) for vectors in (*edges, edges[-1] + 1))


@dataclass(frozen=True)
class Threshold:
    """A running 95th percentile in one number.

    ``log tau`` moves up by 0.95 of a step when a value is above it and down by 0.05 when not: whatever the distribution and
    however it drifts, in the long run 5 % are above (Robbins and Monro 1951; Gibbs and Candes 2021, adaptive conformal
    inference). The test's guarantee does not depend on it, only its power.

    Attributes:
        log_tau: of the percentile, in the unit of the values; meaningless while ``seen`` is 0.
        seen: how many values it has learned from.
    """

    log_tau: float = 0.0
    seen: int = 0

    @property
    def tau(self) -> float:
        """Infinite before the first value: nothing is slow when nobody knows what slow is."""
        return exp(self.log_tau) if self.seen else inf

    def after(self, value: float) -> "Threshold":
        """Learn from one value of the stable arm; what is not a positive number teaches nothing."""
        if not (isfinite(value) and value > 0):
            return self
        if not self.seen:
            return Threshold(log(value), 1)
        step = max(GAIN, 1 / sqrt(self.seen))
        return Threshold(self.log_tau + step * (float(log(value) > self.log_tau) - TAIL), self.seen + 1)

    def is_slow(self, value: float, arm: str) -> bool:
        """A value that is no number is slow."""
        return not value <= self.tau * (TOLERATED if arm == CANARY else 1.0)


@dataclass
class _Session:
    """What one session has been through, as far as it matters for what counts."""

    draw: int
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
    seen: dict[str, int] = field(default_factory=dict[str, int])
    mirrored: dict[str, list[int]] = field(default_factory=dict[str, list[int]])


class Units:
    """The open sessions of one router in one rollout: told of every observation, it says which of them count.

    ``thresholds`` are the strata's running percentiles, to be kept with whatever else survives a restart.

    Args:
        clock: seconds, never going back; read at a session's first observation and by :meth:`settle`.
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

    def saw(
        self, stream: str, arm: str, session: str, weight: float, value: float, stratum: str = "all", segment: int = 0
    ) -> Event | None:
        """The unit that an observation is, if it is one.

        Args:
            stream: ``assign`` and ``fail``, ``slow`` once a request, ``miss`` once a label, ``unlabelled`` once a prediction.
            arm, weight, segment: of the request that it belongs to; the weight in percent.
            value: a duration in any one unit for ``slow``; for others 0 is good and everything else, no number too, bad.

        Raises:
            ServingError: no such stream, arm or weight.
        """
        event = Event(stream, arm, weight, value != 0, stratum, segment)  # checked before anything is remembered
        unit = self._routed(session, arm, weight, stratum, segment)
        index = unit.seen[stream] = unit.seen.get(stream, -1) + 1
        if stream == FAIL:
            if unit.settled:
                return None
            first, unit.failed = event.bad and not unit.failed, unit.failed or event.bad
            return event if first else None
        if stream == SLOW:
            return self._timed(unit, value) if index == unit.draw and not unit.moved else None
        if index == (0 if stream == ASSIGN else unit.draw):
            return event if stream != ASSIGN else Event(stream, arm, weight, True, stratum, segment)
        return None

    def compared(self, stream: str, session: str, stable_bad: bool, canary_bad: bool, stratum: str = "all") -> Event | None:
        """Both arms answered a mirrored request of a session that stable serves; the unit, if this was the last that counts."""
        if stream not in PAIRED:
            raise ServingError(f"a mirrored pair of {stream!r}; only {', '.join(PAIRED)} have pairs")
        unit = self._sessions.get(session) or self._routed(session, STABLE, 0.0, stratum, 0)
        shifts = unit.mirrored.setdefault(stream, [])
        if unit.settled or len(shifts) == MOST_MIRRORED:
            return None
        shifts.append(int(canary_bad) - int(stable_bad))
        return _pair(unit, stream) if len(shifts) == MOST_MIRRORED else None

    def closed(self, session: str) -> list[Event]:
        """The units that the end of a session settles; nothing for one that is not known, or is settled."""
        unit = self._sessions.pop(session, None)
        return [] if unit is None else _settled(unit)

    def settle(self, seconds: float, most: int) -> list[Event]:
        """The units of sessions that were first observed ``seconds`` ago or earlier; they go on without counting again.

        Whether a session is settled depends on the clock alone, not on what happened to it, so the tests keep their guarantees.

        Args:
            most: number of sessions looked at; the rest waits for the next call.
        """
        before, events = self._clock() - seconds, list[Event]()
        for _ in range(min(most, len(self._unsettled))):
            if self._unsettled[0].started > before:
                break
            events += _settled(self._unsettled.popleft())
        return events

    def _routed(self, session: str, arm: str, weight: float, stratum: str, segment: int) -> _Session:
        unit = self._sessions.get(session)
        if unit is None:
            draw = drawn(self._rollout, session)
            unit = _Session(draw, arm, weight, stratum, segment, weight, weight, self._clock())
            self._sessions[session] = unit
            self._unsettled.append(unit)
            return unit
        unit.moved = unit.moved or arm != unit.arm
        unit.arm, unit.weight, unit.stratum, unit.segment = arm, weight, stratum, segment
        unit.low, unit.high = min(unit.low, weight), max(unit.high, weight)
        return unit

    def _timed(self, unit: _Session, value: float) -> Event:
        threshold = self.thresholds.get(unit.stratum, Threshold())
        bad = threshold.is_slow(value, unit.arm)
        if unit.arm == STABLE:
            self.thresholds[unit.stratum] = threshold.after(value)
        return Event(SLOW, unit.arm, settled(unit.low, unit.high), bad, unit.stratum, unit.segment)


def _settled(unit: _Session) -> list[Event]:
    """What a session's observation so far amounts to; nothing if that was counted already."""
    if unit.settled:
        return []
    unit.settled = True
    pairs = [_pair(unit, stream) for stream, shifts in unit.mirrored.items() if len(shifts) < MOST_MIRRORED]
    if FAIL not in unit.seen or unit.failed:
        return pairs
    return [*pairs, Event(FAIL, unit.arm, unit.weight, False, unit.stratum, unit.segment)]


def _pair(unit: _Session, stream: str) -> Event:
    shifts = unit.mirrored[stream]
    return Event(stream, NEITHER, None, True, unit.stratum, unit.segment, sum(shifts) / len(shifts))
