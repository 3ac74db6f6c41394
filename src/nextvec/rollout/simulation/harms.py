"""Harms of simulated canaries."""

from dataclasses import dataclass, replace

import numpy as np

from nextvec.rollout.simulation.traffic import Traffic


@dataclass(frozen=True)
class Harm:
    """A fault of a canary, or of the assignment.

    Attributes:
        errors: additional share of failing requests.
        slowness: factor on the latency.
        points: loss of Hit@K; 0.03 is three points.
        lost: share of labels that never arrive.
        bias: the router gives the canary this share of what the weight states.
        both: whether the stable arm has the same fault.
        discordance: share of predictions for which the hits of the two models differ.
    """

    name: str
    errors: float = 0.0
    slowness: float = 1.0
    points: float = 0.0
    lost: float = 0.0
    bias: float = 1.0
    both: bool = False
    discordance: float = 0.1

    def outcomes(self, traffic: Traffic, rng: np.random.Generator) -> tuple[Traffic, Traffic]:
        """The outcomes of all requests on the stable arm and on the canary."""
        canary = self._on(traffic, rng)
        return (canary if self.both else traffic), canary

    def _on(self, traffic: Traffic, rng: np.random.Generator) -> Traffic:
        wins = max(0.0, (self.discordance - self.points) / 2)
        hits = float((traffic.hit == 1).sum() / max(1, (traffic.hit >= 0).sum()))
        u = rng.random(len(traffic))
        lost, won = u < (wins + self.points) / max(hits, 1e-9), u < wins / max(1 - hits, 1e-9)
        hit = np.where(traffic.hit == 1, 1 - lost.astype(np.int64), np.where(traffic.hit == 0, won.astype(np.int64), -1))
        return replace(
            traffic,
            latency=traffic.latency * self.slowness,
            failed=traffic.failed | (rng.random(len(traffic)) < self.errors),
            hit=np.where(rng.random(len(traffic)) < self.lost, -1, hit),
        )


EQUAL = Harm("none (A/A)")
HARMS = (
    Harm("errors 0.1 → 5 %", errors=0.049),
    Harm("errors 0.1 → 1 %", errors=0.009),
    Harm("errors 0.1 → 0.2 %", errors=0.001),
    Harm("1.2 x slower", slowness=1.2),
    Harm("1.5 x slower", slowness=1.5),
    Harm("2 x slower", slowness=2.0),
    Harm("Hit@5 -3 points", points=0.03),
    Harm("Hit@5 -10 points", points=0.1),
    Harm("10 % of its labels lost", lost=0.1),
    Harm("router gives 2.6 for 5 %", bias=0.52),
    Harm("both 3 x slower", slowness=3.0, both=True),
    Harm("both fail 10 %", errors=0.1, both=True),
)
