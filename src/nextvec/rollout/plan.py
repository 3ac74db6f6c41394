"""The plan of a rollout: its canary steps and time limits, fixed when the rollout is drafted."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from nextvec.errors import ServingError
from nextvec.rollout.guardrails import FAIL, GUARDRAILS, Guardrail
from nextvec.rollout.power import needed

STEP_WEIGHTS = (5.0, 10.0, 25.0, 50.0, 98.0)  # the last keeps 2 % on stable: without a control group no test has power


@dataclass(frozen=True)
class CanaryStep:
    """One step of a rollout.

    Attributes:
        weight: of the canary, in percent of the sessions.
        dwell: minimum duration, in seconds.
        units: sessions that must be counted at this weight before the next step.
    """

    weight: float
    dwell: float
    units: int


def canary_steps(
    harm: float, base: float, dwell: float = 900.0, guardrail: Guardrail = GUARDRAILS[FAIL]
) -> tuple[CanaryStep, ...]:
    """Steps that are long enough to detect ``harm`` times a failure rate of ``base`` in 90 of 100 rollouts, each step alone.

    Raises:
        ServingError: ``harm`` is within what the guardrail tolerates, or ``base`` is not a rate.
    """
    return tuple(
        CanaryStep(weight, dwell, needed(harm, weight, base, guardrail.alpha, guardrail.tolerated)[1])
        for weight in STEP_WEIGHTS
    )


@dataclass(frozen=True)
class Plan:
    """How a rollout proceeds. Durations are seconds during which a controller watches the rollout.

    Attributes:
        harm, base: the declared harm (canary rate / stable rate of failures) and the stable arm's failure rate.
        steps: the canary steps with rising weights; the last one keeps a hold-back on stable.
        shadow: requirements of the shadow phase; its units are mirrored pairs, its weight is 0.
        max_wait: after this time in one state without a step, the rollout pauses.
        silence: after this time without a unit, the rollout pauses.
        longest_pause: after this time in a pause, the rollout is rolled back.
        lease: for this long a router uses its snapshot without a sign of life from the controller.
        gated: a person must confirm every increase of the weight; the rollout pauses there.
    """

    harm: float
    base: float
    steps: tuple[CanaryStep, ...]
    shadow: CanaryStep = field(default_factory=lambda: CanaryStep(0.0, 900.0, 1_000))
    max_wait: float = 86_400.0
    silence: float = 600.0
    longest_pause: float = 86_400.0
    lease: float = 30.0
    gated: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            ServingError: weights that do not rise or leave one arm without traffic; a duration that is not positive.
        """
        weights = [0.0, *(step.weight for step in self.steps), 100.0]
        if len(self.steps) < 2 or any(low >= high for low, high in pairwise(weights)):
            raise ServingError(f"weights {weights[1:-1]}: give at least two, rising, above 0 and below 100 percent")
        if self.shadow.weight:
            raise ServingError(f"a shadow phase with weight {self.shadow.weight:g}; give 0, because no user gets its answers")
        if min(self.max_wait, self.silence, self.longest_pause, self.lease) <= 0:
            raise ServingError("max_wait, silence, longest_pause and lease must be above 0 seconds")

    @staticmethod
    def detecting(harm: float, base: float, dwell: float = 900.0) -> "Plan":
        """A plan whose steps each detect ``harm`` times a failure rate of ``base`` in 90 of 100 rollouts.

        Raises:
            ServingError: the harm is within what the guardrail tolerates, or the rate is outside its range.
        """
        return Plan(harm, base, canary_steps(harm, base, dwell))

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Plan":
        """Read the plan that the first row of a rollout stores."""
        known = dict(values)
        steps, shadow = (CanaryStep(**step) for step in known.pop("steps")), CanaryStep(**known.pop("shadow"))
        return Plan(steps=tuple(steps), shadow=shadow, **known)
