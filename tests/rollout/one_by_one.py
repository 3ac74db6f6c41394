"""One simulated rollout again, request by request, through the production objects: Units → Evidence → transition."""

from dataclasses import replace

import numpy as np

from nextvec.rollout.evidence import Evidence, UnitOutcome, Verdict
from nextvec.rollout.guardrails import ASSIGN, CANARY, FAIL, MISS, SLOW, STABLE, UNLABELLED
from nextvec.rollout.plan import Plan
from nextvec.rollout.simulation.cohort import SALT, Cohort
from nextvec.rollout.state import LIVE, Phase, State
from nextvec.rollout.transition import Readings, transition, units_at
from nextvec.rollout.units import Units, band, bands
from nextvec.routing import BUCKETS


class OneByOne:
    """A rollout of a cohort; after each tick it has ``state``, ``evidence`` and ``verdict`` as a controller would."""

    def __init__(self, cohort: Cohort, number: int, plan: Plan, shadow: bool, settle: float) -> None:
        self.cohort, self.bucket, self.settle_after = cohort, cohort.bucket[number], settle
        self.now = float(cohort.stable.time[0])
        self.since = self.now
        self.units = Units(SALT, clock=lambda: self.now)
        self.evidence = Evidence(bands())
        self.state = State(plan, Phase.SHADOW if shadow else Phase.CANARY)
        self.verdict: Verdict | None = None
        self.left = np.bincount(cohort.stable.session)

    def block(self, begin: int, end: int) -> None:
        if self.state.phase not in LIVE:
            return  # a rollout that has ended counts nothing
        outcomes: list[UnitOutcome | None] = list(self.units.settle(self.settle_after, 10**9)) if begin else []
        for row in range(begin, end):
            self.now = float(self.cohort.stable.time[row])
            outcomes += self.request(row)
        counted = (replace(outcome, segment=self.state.segment) for outcome in outcomes if outcome is not None)
        self.evidence = self.evidence.after(counted)
        self.verdict = self.evidence.verdict()
        units = units_at(self.state.weight, self.evidence.counts, self.evidence.pairs)
        after, entry = transition(self.state, Readings(self.verdict, int(units), watched=self.now - self.since))
        if entry is not None:
            self.state, self.since = after, self.now

    def request(self, row: int) -> list[UnitOutcome | None]:
        """What a server would report of one request, its label, and the end of its session."""
        stable, canary = self.cohort.stable, self.cohort.canary
        session, stratum, weight = int(stable.session[row]), band(int(stable.vectors[row])), self.state.weight
        name = str(session)
        found: list[UnitOutcome | None] = []
        if not weight:
            pair = bool(stable.failed[row]), bool(canary.failed[row])
            found.append(self.units.observe_pair(FAIL, name, *pair, stratum))
            if stable.hit[row] >= 0 and canary.hit[row] >= 0:
                found.append(
                    self.units.observe_pair(MISS, name, bool(stable.hit[row] == 0), bool(canary.hit[row] == 0), stratum)
                )
        else:
            is_canary = int(self.bucket[session]) < round(weight * self.cohort.bias * BUCKETS / 100)
            arm, outcome = (CANARY, canary) if is_canary else (STABLE, stable)
            values = {
                ASSIGN: 1.0,
                FAIL: float(outcome.failed[row]),
                SLOW: float(outcome.latency[row]),
                UNLABELLED: float(outcome.hit[row] < 0),
                **({MISS: float(outcome.hit[row] == 0)} if outcome.hit[row] >= 0 else {}),
            }
            for stream, value in values.items():
                found.append(self.units.observe(stream, arm, name, weight, value, stratum))
        self.left[session] -= 1
        return found if self.left[session] else [*found, *self.units.close(name)]
