"""Tables of simulated rollouts: how they end, and what the theory states."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nextvec.rollout.guardrails import FAIL, GUARDRAILS, MISS, SLOW, STREAMS, UNLABELLED
from nextvec.rollout.plan import Plan
from nextvec.rollout.power import needed
from nextvec.rollout.simulation.cohort import Cohort, default_plan
from nextvec.rollout.simulation.driver import Ends, Rollouts
from nextvec.rollout.simulation.fixed_horizon import other_rules
from nextvec.rollout.simulation.harms import EQUAL, HARMS, Harm
from nextvec.rollout.simulation.traffic import Traffic
from nextvec.rollout.threshold import TOLERATED
from nextvec.rollout.units import EDGES

SIDE_BY_SIDE = 100  # rollouts of a cohort
PRODUCTION = "sequential test"  # the name of the production rule in a table

Source = Traffic | Callable[[np.random.Generator], Traffic]


def simulate(
    traffic: Source,
    harms: Sequence[Harm] = (EQUAL, *HARMS),
    rollouts: int = 200,
    seed: int = 0,
    plan: Plan | None = None,
    shadow: bool = False,
    rules: bool = True,
    tick: int = 2_000,
) -> list[dict[str, Any]]:
    """How rollouts of each harm end: one JSON-able row per harm and rule.

    Args:
        traffic: recorded, or a function that generates it, called for every 100 rollouts.
        plan: of every rollout; by default its steps detect ten times the traffic's own failure rate.
        shadow: begin in the shadow with mirrored pairs; otherwise at the first canary step.
        rules: also apply two customary rules to the same requests, with weights of 5, 10, 25 and 50 % for a quarter of the time
            each: P95 of the canary above 1.2 times stable's in a minute, with none or three such minutes tolerated; and
            one-sided z-tests of failures, latency and misses, 5 % together, repeated every 1,000 requests.
        tick: requests from one decision to the next; a rollback counts at the decision.

    Returns:
        ``harm``, ``rule``, ``rollouts``, ``rolled_back`` (share), ``requests`` until then (``median``, ``p90``, both arms),
        ``undetected`` (share), ``promoted`` (share) and, of the production rule, ``by`` (share of each WORSE stream).
    """
    ends: dict[tuple[str, str], list[Ends]] = {}
    for harm in harms:
        for n, begin in enumerate(range(0, rollouts, SIDE_BY_SIDE)):
            count = min(SIDE_BY_SIDE, rollouts - begin)
            for rule, end in cohort_ends(traffic, harm, count, [seed, n], plan, shadow, rules, tick).items():
                ends.setdefault((harm.name, rule), []).append(end)
    return [row(harm, rule, parts) for (harm, rule), parts in ends.items()]


def cohort_ends(
    traffic: Source,
    harm: Harm,
    rollouts: int,
    seed: Sequence[int],
    plan: Plan | None = None,
    shadow: bool = False,
    rules: bool = True,
    tick: int = 2_000,
) -> dict[str, Ends]:
    """How the rollouts of one cohort end, by rule. Arguments as in :func:`simulate`."""
    rng = np.random.default_rng(seed)
    given = traffic if isinstance(traffic, Traffic) else traffic(rng)
    cohort = Cohort.draw(given, harm, rollouts, rng)
    ends = {PRODUCTION: Rollouts(cohort, plan or default_plan(given), shadow, tick).run()}
    return ends | other_rules(cohort) if rules else ends


def row(harm: str, rule: str, parts: Sequence[Ends]) -> dict[str, Any]:
    """One row of the table of :func:`simulate`."""
    requests, stream, promoted = (np.concatenate([getattr(part, name) for part in parts]) for name in Ends.__annotations__)
    rolled = requests >= 0
    quantiles = np.percentile(requests[rolled], [50, 90]) if rolled.any() else (math.nan, math.nan)
    return {
        "harm": harm,
        "rule": rule,
        "rollouts": len(requests),
        "rolled_back": float(rolled.mean()),
        "requests": {name: int(q) if rolled.any() else None for name, q in zip(("median", "p90"), quantiles, strict=True)},
        "promoted": float(promoted.mean()),
        "undetected": float(1 - rolled.mean()),
        "by": {name: float((stream[rolled] == n).mean()) for n, name in enumerate(STREAMS) if (stream[rolled] == n).any()},
    }


def stated(traffic: Traffic, harm: Harm, weight: float = 5.0, seed: int = 0) -> dict[str, Any]:
    """What the theory states of a harm over this traffic at one weight: the stream that needs the fewest units, and how many.

    Returns:
        ``stream``, the stable arm's ``base`` rate of it per session, the harm as a ``ratio`` of it, and ``units`` that suffice
        in 90 of 100 rollouts. All None if no stream can detect the harm. ``assign`` is not included: its harm is no ratio.
    """
    cohort = Cohort.draw(traffic, harm, 1, np.random.default_rng(seed))
    found: list[dict[str, Any]] = []
    for stream, (base, bad) in _rates(cohort).items():
        guardrail = GUARDRAILS[stream]
        if bad > base * (1 + guardrail.tolerated) * 1.02:  # a smaller difference is chance
            units = needed(bad / base, weight, base, guardrail.alpha, guardrail.tolerated, len(EDGES) + 1)[1]
            found.append({"stream": stream, "base": base, "ratio": bad / base, "units": units})
    return min(found, key=lambda row: row["units"], default=dict.fromkeys(("stream", "base", "ratio", "units")))


def _rates(cohort: Cohort) -> dict[str, tuple[float, float]]:
    """Bad units per session on each arm, if all sessions were on it."""
    counted = cohort.counted_rows()
    tail = np.array([cohort.log_percentile(counted, k) for k in range(len(EDGES) + 1)])[cohort.stratum[counted]]
    rates: list[list[float]] = []
    for arm, tolerated in ((cohort.stable, 1.0), (cohort.canary, TOLERATED)):
        failed = np.bincount(arm.session, arm.failed) > 0
        hit = arm.hit[counted]
        bad = (np.log(arm.latency[counted] / tolerated) > tail, hit == 0, hit < 0)
        rates.append([float(failed.mean()), *(float(x.sum() / len(failed)) for x in bad)])
    return dict(zip((FAIL, SLOW, MISS, UNLABELLED), zip(*rates, strict=True), strict=True))
