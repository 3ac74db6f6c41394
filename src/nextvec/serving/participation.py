"""The part of one rollout that belongs to the event loop: session events go in, unit outcomes go to the follower.

Every method runs on the event loop. The rollout's thread makes a :class:`Participation` and hands it over. Afterwards the two
share only the follower, which has a lock.
"""

import time
from collections import Counter, deque
from collections.abc import Callable

from nextvec.rollout.follower import Follower
from nextvec.rollout.guardrails import CANARY, FAIL
from nextvec.rollout.units import Units, band, bands
from nextvec.routing import UNSURE
from nextvec.serving.causes import most
from nextvec.serving.observations import Closed, Observation, Pair, SessionEvent

WINDOW_SECONDS, LEAST_REQUESTS, MOST_FAILED = 60.0, 20, 0.5  # of the alarm: recent requests of the canary, share that failed
MOST_SETTLED = 1_000  # sessions in one call of settle


class Participation:
    """Turns the session events of one server into unit outcomes of one rollout.

    Args:
        rollout: id.
        follower: takes outcomes and alarms to the ledger.
        strata: of the rollout's evidence: bands of length, or lanes.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, rollout: str, follower: Follower, strata: frozenset[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rollout, self._follower, self._strata, self._clock = rollout, follower, strata, clock
        self._units = Units(rollout, clock=clock)
        self._recent: deque[tuple[float, bool]] = deque()  # time of a request of the canary, and whether it failed
        self._failed = 0  # of the recent requests
        self._causes: Counter[str] = Counter()  # of the canary's failures

    def observe(self, event: SessionEvent) -> None:
        """Process an event of a request or a session, as :attr:`Service.observe` reports it."""
        if isinstance(event, Closed):
            for outcome in self._units.close(event.session):
                self._follower.observe(outcome)
            return
        stratum = self._stratum(event)
        if isinstance(event, Pair):
            bad = (event.stable_bad, event.canary_bad)
            outcome = self._units.observe_pair(event.stream, event.session, *bad, stratum)
        else:
            outcome = self._units.observe(event.stream, event.arm, event.session, event.weight, event.value, stratum)
        if outcome is not None:
            self._follower.observe(outcome)
        if event.cause:
            self._causes[event.cause] += 1
            self._follower.failed(event.cause)
        if isinstance(event, Observation) and event.stream == FAIL and event.arm == CANARY:
            self._check_failures(event.value != 0)

    def settle(self, seconds: float) -> None:
        """Count the sessions that have been observed for ``seconds``, at most :data:`MOST_SETTLED` of them."""
        for outcome in self._units.settle(seconds, MOST_SETTLED):
            self._follower.observe(outcome)

    def alarm(self, reason: str) -> None:
        """Ask for a rollback without statistics."""
        self._follower.alarm(reason)

    def _stratum(self, event: Observation | Pair) -> str:
        """The lane of the context if the rollout is compared by lanes, otherwise its band of length."""
        if self._strata.issuperset(bands()):
            return band(event.vectors)
        return event.lane if event.lane in self._strata else UNSURE

    def _check_failures(self, failed: bool) -> None:
        """Raise an alarm if the canary failed in more than half of its recent requests."""
        now = self._clock()
        self._recent.append((now, failed))
        self._failed += failed
        while self._recent[0][0] < now - WINDOW_SECONDS:  # stops at the newest, which is from now
            self._failed -= self._recent.popleft()[1]
        if len(self._recent) >= LEAST_REQUESTS and self._failed > MOST_FAILED * len(self._recent):
            why = f": {most(self._causes)}" if self._causes else ""
            self.alarm(f"stable had to answer {self._failed} of the canary's last {len(self._recent)} requests{why}")
