"""A router's view of one rollout: the snapshot by which it routes, and the outcomes that it reports."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace

from nextvec.rollout.evidence import UnitOutcome
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import plan_of, state_of
from nextvec.rollout.state import LIVE, Phase, State
from nextvec.routing import ArmModels, Snapshot


class Follower:
    """Polls the ledger, reports unit outcomes, and keeps the routing snapshot.

    A snapshot is valid for one lease from the last moment at which the controller is *known* to have been alive: the poll
    before the one that saw its heartbeat change. So a new follower assigns no session to the canary until it has seen a
    heartbeat, and no router uses the canary for longer than a lease after the last heartbeat. Thread-safe.

    Attributes:
        snapshot: for routing; replaced by :meth:`poll`.

    Args:
        router: name of this router; a new one in each process and after each restart.
        stable, canary: the models of each arm; threshold: of both, see :class:`~nextvec.routing.Snapshot`.
        clock: of the snapshot's deadline; monotonic, in seconds.

    Raises:
        ServingError: there is no such rollout, or the models of an arm do not fit the threshold.
    """

    def __init__(
        self,
        ledger: Ledger,
        rollout: str,
        router: str,
        stable: ArmModels,
        canary: ArmModels,
        threshold: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan_of(ledger, rollout)
        self.snapshot = Snapshot(0, stable, None, 0.0, rollout, 0.0, threshold)
        self._ledger, self._rollout, self._router, self._clock = ledger, rollout, router, clock
        self._stable, self._canary = stable, canary
        self._beat: int | None = None
        self._polled_at = clock()
        self._deadline = 0.0
        self._lock = threading.Lock()
        self._pending: Counter[UnitOutcome] = Counter()
        self._alarm: str | None = None
        self._causes: Counter[str] = Counter()
        self._batch, self._report = 0, None

    def observe(self, outcome: UnitOutcome) -> None:
        """Report an outcome to the controller with the next poll."""
        with self._lock:
            self._pending[replace(outcome, count=1)] += outcome.count

    def alarm(self, reason: str) -> None:
        """Ask for a rollback without statistics; ``reason`` in words."""
        with self._lock:
            self._alarm = self._alarm or reason

    def failed(self, cause: str) -> None:
        """Report the cause of a failure of the canary, in words. It is shown to people; no decision depends on it."""
        with self._lock:
            self._causes[cause] += 1

    def poll(self) -> Snapshot:
        """Report outcomes and the epoch in use to the ledger, and read the state of the rollout.

        A report that could not be delivered is sent again with the next poll; the ledger takes it once.

        Raises:
            LedgerError: the ledger cannot be reached; the snapshot stays valid until its deadline.
        """
        with self._lock:
            if self._report is None and (self._pending or self._alarm):
                outcomes = [asdict(replace(outcome, count=count)) for outcome, count in self._pending.items()]
                self._report = {"outcomes": outcomes, "alarm": self._alarm, "causes": self._causes}
                self._batch += 1
                self._pending, self._alarm, self._causes = Counter(), None, Counter()
        now = self._clock()
        record = self._ledger.exchange(self._rollout, self._router, self.snapshot.epoch, self._batch, self._report)
        self._report = None
        if self._beat is not None and record.beat != self._beat:
            self._deadline = self._polled_at + self._plan.lease
        self._beat, self._polled_at = record.beat, now
        self.snapshot = self._snapshot_of(state_of(self._plan, record))
        return self.snapshot

    def leave(self) -> None:
        """Stop routing; the rollback of this rollout no longer waits for this router."""
        self._ledger.leave(self._rollout, self._router)

    def _snapshot_of(self, state: State) -> Snapshot:
        threshold = self.snapshot.threshold
        if state.phase is Phase.PROMOTED:
            return Snapshot(state.epoch, self._canary, None, 0.0, self._rollout, 0.0, threshold)
        canary = self._canary if state.phase in LIVE else None
        return Snapshot(state.epoch, self._stable, canary, state.weight, self._rollout, self._deadline, threshold)
