"""One server's part in one rollout, as its event loop holds it: what happened to requests goes in, units go to the follower.

Every method is called on the event loop. The rollout's thread makes a :class:`Participation` and hands it over; from then on
the two share the follower alone, which has a lock.
"""

import time
from collections import Counter, deque
from collections.abc import Callable

from nextvec.rollout.judge import CANARY, FAIL
from nextvec.rollout.plan import Follower
from nextvec.rollout.units import Units, band, bands
from nextvec.routing import UNSURE
from nextvec.serving.causes import most
from nextvec.serving.observations import Closed, Event, Pair, Seen

LATEST, FEWEST, MOST_FAILED = 60.0, 20, 0.5  # seconds; requests of the canary in them; share of them that stable answered
MOST_SETTLED = 1_000  # sessions at one call of settle


class Participation:
    """See the module.

    Args:
        rollout: id.
        follower: takes the units and alarms to the ledger.
        strata: of the rollout's evidence: bands of length, or lanes.
        clock: monotonic, seconds.
    """

    def __init__(
        self, rollout: str, follower: Follower, strata: frozenset[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rollout, self._follower, self._strata, self._clock = rollout, follower, strata, clock
        self._units = Units(rollout, clock=clock)
        self._tried: deque[tuple[float, bool]] = deque()
        self._failed = 0  # of them
        self._causes: Counter[str] = Counter()  # of the canary's failures

    def observe(self, happened: Event) -> None:
        """Take in what happened to a request or a session, as :attr:`Service.observe` tells it."""
        if isinstance(happened, Closed):
            for event in self._units.closed(happened.session):
                self._follower.observe(event)
            return
        if isinstance(happened, Pair):
            bad = (happened.stable_bad, happened.canary_bad)
            event = self._units.compared(happened.stream, happened.session, *bad, self._stratum(happened))
        else:
            seen = happened
            event = self._units.saw(seen.stream, seen.arm, seen.session, seen.weight, seen.value, self._stratum(seen))
        if event is not None:
            self._follower.observe(event)
        if happened.cause:
            self._causes[happened.cause] += 1
            self._follower.failed(happened.cause)
        if isinstance(happened, Seen) and happened.stream == FAIL and happened.arm == CANARY:
            self._trip(happened.value != 0)

    def settle(self, seconds: float) -> None:
        """Count the sessions that have been observed for ``seconds``, at most :data:`MOST_SETTLED` of them."""
        for event in self._units.settle(seconds, MOST_SETTLED):
            self._follower.observe(event)

    def alarm(self, what: str) -> None:
        """Ask for the rollout to be rolled back, for a reason that needs no statistics."""
        self._follower.alarm(what)

    def _stratum(self, happened: Seen | Pair) -> str:
        """By length of the context, or by lane where the rollout is judged by lanes."""
        if self._strata.issuperset(bands()):
            return band(happened.vectors)
        return happened.lane if happened.lane in self._strata else UNSURE

    def _trip(self, failed: bool) -> None:
        """Alarm if stable answered more than half of the canary's latest requests: that needs no statistics."""
        now = self._clock()
        self._tried.append((now, failed))
        self._failed += failed
        while self._tried[0][0] < now - LATEST:  # ends at the newest, which is from now
            self._failed -= self._tried.popleft()[1]
        if len(self._tried) >= FEWEST and self._failed > MOST_FAILED * len(self._tried):
            why = f": {most(self._causes)}" if self._causes else ""
            self.alarm(f"stable had to answer {self._failed} of the canary's last {len(self._tried)} requests{why}")
