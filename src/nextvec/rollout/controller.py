"""The controller: judges one rollout and moves it, inside transactions of the ledger.

Time counts only while a controller watches, on its own monotonic clock; the sum is kept in the ledger. So time without a
controller does not count towards a step, and a change of the wall clock has no effect.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nextvec.rollout.evidence import Evidence, UnitOutcome
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.lifecycle import plan_of, readings_of, state_of
from nextvec.rollout.records import ConflictError, Decision, LedgerError, Record
from nextvec.rollout.state import Phase, State
from nextvec.rollout.transition import transition

TAKEOVER = 0.5  # of a lease without a heartbeat: another controller takes over before any router's lease expires
MOST_CAUSES = 3  # of failures, named in the cause of a rollback


class Controller:
    """Judges and moves one rollout while it holds it. Several controllers may stand by, in any process.

    Attributes:
        state: as last read; PAUSED, in memory only, while the ledger cannot be written.
        trouble: why the ledger cannot be written; None while it can.
        token: the fencing token; None while another controller holds the rollout.

    Args:
        holder: name of this process, for people.
        clock: monotonic, in seconds.

    Raises:
        ServingError: there is no such rollout.
    """

    def __init__(self, ledger: Ledger, rollout: str, holder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan = plan_of(ledger, rollout)
        self.state = state_of(self.plan, ledger.record(rollout))
        self.trouble: str | None = None
        self.token: int | None = None
        self._ledger, self._rollout, self._holder, self._clock = ledger, rollout, holder, clock
        self._causes: Counter[str] = Counter()  # of the canary's failures, reported while this controller held
        self._seen: Record | None = None
        self._seen_at = self._ticked_at = self._now = clock()

    def tick(self) -> State:
        """Take the rollout over if it is free. If this controller holds it: send a heartbeat, add the reports, decide."""
        try:
            if self.token is not None or self._take_over():
                assert self.token is not None
                self._now = self._clock()
                record = self._ledger.tick(self._rollout, self.token, self._decide)
                self._ticked_at, self.trouble = self._now, None
                self.state = state_of(self.plan, record)
        except ConflictError:  # another controller was faster, or took over while this process was stopped
            self.token = None
        except LedgerError as error:
            self.trouble = str(error)
            if self.state.phase in (Phase.SHADOW, Phase.CANARY, Phase.FULL):
                self.state = self.state.paused()
        return self.state

    def run(self, stop: threading.Event, interval: float = 1.0) -> State:
        """Tick every ``interval`` seconds until the rollout has ended or ``stop`` is set, then release the rollout."""
        while not self.tick().ended and not stop.wait(interval):
            pass
        self.release()
        return self.state

    def release(self) -> None:
        """Let another controller take over without a wait."""
        if self.token is not None:
            self._ledger.release(self._rollout, self.token)
            self.token = None

    def _take_over(self) -> bool:
        """Hold the rollout if it is free, or if its holder sent no heartbeat for half a lease by this process's clock."""
        record, now = self._ledger.record(self._rollout), self._clock()
        self.state, self.trouble = state_of(self.plan, record), None
        if self._seen is None or (record.token, record.beat) != (self._seen.token, self._seen.beat):
            self._seen, self._seen_at = record, now
        if record.holder and now - self._seen_at < TAKEOVER * self.plan.lease:
            return False
        self.token = self._ledger.acquire(record, self._holder)
        self._ticked_at = now
        return True

    def _decide(self, record: Record, reports: list[Any]) -> Decision:
        state, before = state_of(self.plan, record), Evidence.from_json(record.evidence)
        outcomes = (UnitOutcome(**values) for report in reports for values in report["outcomes"])
        evidence = before.after(replace(outcome, segment=state.segment) for outcome in outcomes)
        for report in reports:
            self._causes.update(report.get("causes", {}))
        away = self._now - self._ticked_at
        watched = record.watched + min(away, self.plan.lease)
        last_unit = watched if evidence.num_units > before.num_units else record.last_unit
        readings = readings_of(
            state,
            replace(record, watched=watched, last_unit=last_unit),
            evidence,
            alarm=next((report["alarm"] for report in reports if report["alarm"]), None),
            failures=", ".join(f"{cause} ({count} times)" for cause, count in self._causes.most_common(MOST_CAUSES)),
            ledger_error=f"no tick for {away:.0f} s: {self.trouble}" if self.trouble and away > self.plan.lease else None,
        )
        return Decision(watched, last_unit, readings.evidence, transition(state, readings)[1])
