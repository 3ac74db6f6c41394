"""Many simulated rollouts from their first request to their end."""

# Axes: A rollouts.

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from nextvec.rollout.evalues import Pairs, Units, verdicts
from nextvec.rollout.evidence import Verdict
from nextvec.rollout.guardrails import GUARDRAILS, STREAMS
from nextvec.rollout.plan import Plan
from nextvec.rollout.simulation.cohort import Cohort
from nextvec.rollout.simulation.selection import Selection
from nextvec.rollout.state import LIVE, Phase, State
from nextvec.rollout.transition import Readings, transition, units_at
from nextvec.rollout.units import bands

SETTLE = 300.0  # seconds, as the default of a server


@dataclass(frozen=True)
class Ends:
    """How each rollout ended.

    Attributes:
        requests: of both arms until the rollback; -1 without one.
        stream: index of the stream that was WORSE; -1 for another cause or no rollback.
        promoted: whether the canary was promoted.
    """

    requests: Int64[np.ndarray, " A"]
    stream: Int64[np.ndarray, " A"]
    promoted: Bool[np.ndarray, " A"]


class Rollouts:
    """The rollouts of a cohort.

    Attributes:
        states: of each rollout; since: time at which it entered the state.

    Args:
        plan: of every rollout.
        shadow: begin in the shadow; otherwise at the first canary step.
        tick: requests between two ticks of the controller.
    """

    def __init__(self, cohort: Cohort, plan: Plan, shadow: bool, tick: int, settle: float = SETTLE) -> None:
        count = len(cohort.bucket)
        self.cohort, self.plan, self.interval = cohort, plan, tick
        first = State(plan).to(Phase.SHADOW if shadow else Phase.CANARY)
        self.states = [first] * count
        self.since = np.full(count, cohort.stable.time[0])
        self.selection = Selection(cohort, [0.0, *(step.weight for step in plan.steps)], tick, settle)
        self.ends = Ends(np.full(count, -1), np.full(count, -1), np.zeros(count, bool))
        self.verdicts: list[Verdict] = []  # of the last tick

    def run(self) -> Ends:
        """Process all requests, or until every rollout has ended."""
        for begin in range(0, len(self.cohort.stable), self.interval):
            if not any(state.phase in LIVE for state in self.states):
                break
            self.block(begin, min(begin + self.interval, len(self.cohort.stable)))
        return self.ends

    def block(self, begin: int, end: int) -> None:
        """Requests ``begin:end`` happen, then the controller of each rollout ticks once."""
        who = np.array([n for n, state in enumerate(self.states) if state.phase in LIVE], np.int64)
        if not len(who):
            return
        phase = np.array([self.states[n].segment for n in who], np.int64)
        self.selection.block(begin, end, who, phase)
        units, pairs = self.selection.units(), self.selection.pairs
        count = {weight: self._full(units_at(weight, units, pairs)) for weight in self.selection.weights.tolist()}
        self.verdicts = self._verdicts(units, pairs)
        now = self.cohort.stable.time[end - 1]
        for n in who.tolist():
            state = self.states[n]
            readings = Readings(self.verdicts[n], int(count[state.weight][n]), watched=float(now - self.since[n]))
            after, entry = transition(state, readings)
            if entry is not None:
                self.states[n], self.since[n] = after, now
                self._end(n, end, after, self.verdicts[n])

    def _verdicts(self, units: Units, pairs: Pairs) -> list[Verdict]:
        found = verdicts(GUARDRAILS, bands(), units, pairs)
        columns = [self._full(found[stream]).tolist() for stream in STREAMS]
        known: dict[tuple[str, ...], Verdict] = {}
        return [known.setdefault(row, Verdict(dict(zip(STREAMS, row, strict=True)))) for row in zip(*columns, strict=True)]

    def _full(self, values: object) -> np.ndarray:
        """One value per rollout, also where no rollout has a count yet."""
        return np.broadcast_to(np.asarray(values), (len(self.states),))

    def _end(self, n: int, end: int, state: State, verdict: Verdict) -> None:
        if state.phase is Phase.PROMOTED:
            self.ends.promoted[n] = True
        elif state.phase not in LIVE:
            self.ends.requests[n] = end
            self.ends.stream[n] = STREAMS.index(verdict.worse[0]) if verdict.worse else -1
