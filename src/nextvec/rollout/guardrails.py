"""The guardrail metrics of a rollout: their names, the arms, and what each metric tolerates."""

from dataclasses import dataclass

STABLE, CANARY, NEITHER = "stable", "canary", "neither"
FAIL, SLOW, MISS, UNLABELLED, ASSIGN = "fail", "slow", "miss", "unlabelled", "assign"
STREAMS = (FAIL, SLOW, MISS, UNLABELLED, ASSIGN)
PAIRED = (FAIL, SLOW, MISS)  # streams that accept mirrored pairs
WORSE, OK, UNDECIDED = "WORSE", "OK", "UNDECIDED"


@dataclass(frozen=True)
class Guardrail:
    """The limits of one stream.

    Attributes:
        alpha: highest probability of the verdict WORSE, over a whole rollout, for a canary within ``tolerated``.
        tolerated: the canary counts as worse when its rate is more than ``1 + tolerated`` times the stable arm's.
        margin: OK states that the rate is below ``1 + margin`` times the stable arm's.
        points: OK from mirrored pairs states that the net share of harmed units is below this; None: pairs never give OK.
        level: OK is also given when the share of bad canary units is below this, whatever the stable arm does. Two arms
            that almost never fail give no evidence about a ratio. None: only the ratio counts.
    """

    alpha: float = 0.0025
    tolerated: float = 0.0
    margin: float = 0.5
    points: float | None = None
    level: float | None = None


GUARDRAILS: dict[str, Guardrail] = {
    FAIL: Guardrail(tolerated=0.1, margin=1.0, level=0.002),
    SLOW: Guardrail(margin=0.5),  # its threshold already contains the factor 1.2
    MISS: Guardrail(margin=0.05, points=0.017),
    UNLABELLED: Guardrail(tolerated=0.1, margin=0.25),
    ASSIGN: Guardrail(alpha=0.001, margin=0.5),
}
