"""The states of a rollout and the changes between them.

==============  =====================================================================================================
from            to
==============  =====================================================================================================
DRAFT           SHADOW (``start``), REJECTED (a check failed, or ``abort``)
SHADOW          CANARY(0): mirrored pairs show no loss; REJECTED: a stream is WORSE
CANARY(i)       CANARY(i + 1): no stream is WORSE, and there are enough units to detect the declared harm
CANARY(last)    FULL: every stream is OK; 2 % of the sessions stay on stable as the control group
FULL            PROMOTED: the dwell time has passed and no stream is WORSE
all above       PAUSED: by a person, or without traffic, verdict or ledger. The weight stays and judging continues
PAUSED          the state before the pause, by a person
SHADOW … PAUSED ROLLING_BACK: a stream is WORSE, an alarm, or a person; the same transaction sets the weight to 0
ROLLING_BACK    ROLLED_BACK: every router uses the new epoch, or its lease has expired
==============  =====================================================================================================
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from nextvec.errors import ServingError
from nextvec.rollout.plan import CanaryStep, Plan


class Phase(StrEnum):
    """The phases of a rollout."""

    DRAFT = "DRAFT"
    SHADOW = "SHADOW"
    CANARY = "CANARY"
    FULL = "FULL"
    PAUSED = "PAUSED"
    ROLLING_BACK = "ROLLING_BACK"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    REJECTED = "REJECTED"


TERMINAL = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK, Phase.REJECTED})
LIVE = frozenset({Phase.SHADOW, Phase.CANARY, Phase.FULL, Phase.PAUSED})


@dataclass(frozen=True)
class State:
    """The state of a rollout, which follows from its rows in the ledger.

    Attributes:
        plan: of the rollout.
        phase: present phase; step: index of the canary step, 0 in other phases; paused_from: the phase before a pause.
        epoch: number of the row that made this state.
    """

    plan: Plan
    phase: Phase = Phase.DRAFT
    step: int = 0
    paused_from: Phase | None = None
    epoch: int = 1

    def __str__(self) -> str:
        phase = f"{self.active_phase}({self.step})" if self.active_phase is Phase.CANARY else str(self.active_phase)
        return f"PAUSED({phase})" if self.paused_from else phase

    @property
    def active_phase(self) -> Phase:
        """The phase, or the phase before the pause."""
        return self.paused_from or self.phase

    @property
    def requirements(self) -> CanaryStep:
        """Weight, minimum duration and minimum units of the active phase."""
        if self.active_phase is Phase.CANARY:
            return self.plan.steps[self.step]
        return self.plan.steps[-1] if self.active_phase is Phase.FULL else self.plan.shadow

    @property
    def weight(self) -> float:
        """Percent of the sessions on the canary while it is compared with stable; 0 outside CANARY and FULL."""
        return self.requirements.weight if self.active_phase in (Phase.CANARY, Phase.FULL) else 0.0

    @property
    def segment(self) -> int:
        """Restarts of the test so far: one per canary step."""
        return {Phase.CANARY: 1 + self.step, Phase.FULL: len(self.plan.steps)}.get(self.active_phase, 0)

    @property
    def is_last_step(self) -> bool:
        """Whether the next phase is FULL, which needs the verdict OK of every stream."""
        return self.active_phase is Phase.CANARY and self.step == len(self.plan.steps) - 2

    @property
    def ended(self) -> bool:
        return self.phase in TERMINAL

    def named(self, name: str, epoch: int) -> "State":
        """The state with this name.

        Raises:
            ServingError: no state has it.
        """
        found = next((state for state in self._all() if str(state) == name), None)
        if found is None:
            raise ServingError(f"{name!r} is not a state of this rollout")
        return replace(found, epoch=epoch)

    def to(self, phase: Phase) -> "State":
        return replace(self, phase=phase, step=0, paused_from=None)

    def paused(self) -> "State":
        return replace(self, phase=Phase.PAUSED, paused_from=self.phase)

    def resumed(self) -> "State":
        return self if self.paused_from is None else replace(self, phase=self.paused_from, paused_from=None)

    def next_up(self) -> "State":
        """One step up from the active phase."""
        if self.active_phase is Phase.SHADOW:
            return self.to(Phase.CANARY)
        if self.active_phase is Phase.FULL:
            return self.to(Phase.PROMOTED)
        if self.is_last_step:
            return self.to(Phase.FULL)
        return replace(self, phase=Phase.CANARY, step=self.step + 1, paused_from=None)

    def successors(self) -> frozenset[str]:
        """Names of the states that one change can lead to."""
        if self.phase is Phase.DRAFT:
            return frozenset({str(Phase.SHADOW), str(Phase.REJECTED)})
        if self.phase is Phase.ROLLING_BACK:
            return frozenset({str(Phase.ROLLED_BACK)})
        if self.phase not in LIVE:
            return frozenset()
        aside = self.resumed() if self.paused_from else self.paused()
        down = {str(Phase.ROLLING_BACK), *([str(Phase.REJECTED)] if self.phase is Phase.SHADOW else [])}
        return frozenset({str(self.next_up()), str(aside), *down})

    def _all(self) -> list["State"]:
        """Every state of a rollout with this plan."""
        steps = (State(self.plan, Phase.CANARY, step) for step in range(len(self.plan.steps) - 1))
        active = [State(self.plan, Phase.SHADOW), *steps, State(self.plan, Phase.FULL)]
        others = [State(self.plan, phase) for phase in (Phase.DRAFT, Phase.ROLLING_BACK, *TERMINAL)]
        return [*active, *(state.paused() for state in active), *others]
