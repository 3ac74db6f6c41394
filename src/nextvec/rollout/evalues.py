"""E-values and verdicts from counts of unit outcomes.

**Definition.** The mean capital over several bets is a non-negative supermartingale that starts at 1. By Ville's inequality it
ever reaches ``1 / alpha`` with probability at most ``alpha``, at any stopping time and for all weights that were chosen before
the outcomes. Reaching ``1 / alpha`` is the verdict WORSE. Bets on the opposite hypothesis, "at least the margin worse", give
the verdict OK in the same way.

**Combination.** Averages of such processes are such processes, whatever their dependence. Products are, if each outcome has
probability at most ``theta`` given all outcomes before it. One unit gives a stream at most one outcome, so the product over all
outcomes of a stream (the pool) is valid. It is the strongest test if every stratum is harmed, but a healthy majority hides a
harm in one stratum. So half of a stream's capital is on the pool and half is divided among the strata: a uniform harm needs
log 2 more evidence, a harm in one of K strata log 2K. A long good history would also delay the detection of a harm that begins
late. So part of the capital restarts with each segment: a share of ``1 / (j + 1)(j + 2)`` with the j-th (a mixture over start
times as in Shin, Ramdas and Rinaldo 2024). A quarter of a stream's capital is on mirrored pairs, if the stream has pairs.

**Error budget.** WORSE: 0.25 % each for ``fail``, ``slow``, ``miss`` and ``unlabelled`` and 0.1 % for ``assign``, over a whole
rollout. OK: 5 % each, not divided, because a promotion needs the verdict OK of all streams, so a false promotion needs an error
in the stream that is beyond its margin (intersection-union test, Berger 1982).

**Limits.** OK is a statement about the pool, which is the average unit. A stratum alone beyond its margin shows only when it is
WORSE. A harm to both arms is not measured. Streams share the assignment of their sessions, so a weight that was raised because
one stream was OK depends a little on the assignments of the others; the simulation includes this effect.

**One implementation.** A count is an integer for one rollout or an array for many rollouts side by side. The evidence of one
rollout and the simulation of thousands call the same functions.
"""

# Axes: R bets, S segments, K strata; "..." is empty for one rollout and A for many.

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from nextvec.rollout.bets import INVERSE, RATIOS, attribution, gains_at, pair_gains
from nextvec.rollout.guardrails import ASSIGN, CANARY, MISS, OK, PAIRED, STREAMS, UNDECIDED, WORSE, Guardrail

ALPHA_OK = 0.05
PAIRS_SHARE, LIVE_SHARE = 0.25, 0.75  # of the capital of a stream that has mirrored pairs

Count = int | Int64[np.ndarray, " A"]
UnitKey = tuple[str, str, int, float, str, bool]  # stream, stratum, segment, weight, arm, bad
PairKey = tuple[str, float]  # stream, shift
Units = Mapping[UnitKey, Count]
Pairs = Mapping[PairKey, Count]


def verdicts(guardrails: Mapping[str, Guardrail], strata: Sequence[str], units: Units, pairs: Pairs) -> dict[str, np.ndarray]:
    """The verdict on each stream, of shape "...". WORSE has priority over OK."""
    found: dict[str, np.ndarray] = {}
    for stream in STREAMS:
        worse, ok = log_e_values(stream, guardrails[stream], strata, units, pairs)
        is_worse, is_ok = worse >= -math.log(guardrails[stream].alpha), ok >= -math.log(ALPHA_OK)
        found[stream] = np.where(is_worse, WORSE, np.where(is_ok, OK, UNDECIDED))
    return found


def log_e_values(
    stream: str, guardrail: Guardrail, strata: Sequence[str], units: Units, pairs: Pairs
) -> tuple[Float64[np.ndarray, "..."], Float64[np.ndarray, "..."]]:
    """Natural logarithms of a stream's e-values for WORSE and for OK; 0 is no evidence."""
    ours = {key: count for key, count in units.items() if key[0] == stream}
    ratios = RATIOS + INVERSE if stream == ASSIGN else RATIOS
    live = live_gains(ours, strata, guardrail.tolerated, ratios)
    worse = log_e_worse(live, _pair_gains(stream, pairs, 0.0, 1.0) if stream in PAIRED else None)
    below = log_mean(live_gains(ours, strata, guardrail.margin, INVERSE).sum((-3, -2)))
    if stream == ASSIGN:
        above = live_gains(ours, strata, 1 / (1 + guardrail.margin) - 1, RATIOS).sum((-3, -2))
        return worse, np.asarray(np.minimum(below, log_mean(above)))
    ways = [below]
    if guardrail.points is not None:
        ways.append(log_mean(_pair_gains(stream, pairs, guardrail.points, -1.0)))
    if guardrail.level is not None:
        ways.append(log_mean(_level_gains(ours, guardrail.level)))
    return worse, log_e_ok(ways)


def live_gains(
    units: Units, strata: Sequence[str], tolerated: float, ratios: tuple[float, ...]
) -> Float64[np.ndarray, "... K S R"]:
    """Log gains of all bets from the bad units of one stream, by stratum and segment."""
    segments = 1 + max((key[2] for key in units), default=0)
    shape = np.shape(next(iter(units.values()), 0))
    gains = np.zeros((*shape, len(strata), segments, len(ratios)))
    for (_, stratum, segment, weight, arm, bad), count in units.items():
        if bad:
            gain = attribution(weight, tolerated, ratios)[int(arm == CANARY)]
            gains[..., strata.index(stratum), segment, :] += np.multiply.outer(count, gain)
    return gains


def log_mean(gains: Float64[np.ndarray, "... R"]) -> Float64[np.ndarray, "..."]:
    """Log of the mean capital over bets with equal stakes."""
    highest = gains.max(-1, keepdims=True)
    return np.asarray(np.log(np.exp(gains - highest).mean(-1)) + highest[..., 0])


def log_e_restarted(gains: Float64[np.ndarray, "... S R"]) -> Float64[np.ndarray, "..."]:
    """Log capital when a share of ``1 / (j + 1)(j + 2)`` is invested with segment ``j``, and the rest is kept."""
    since = log_mean(np.flip(np.cumsum(np.flip(gains, -2), -2), -2))
    start = np.arange(gains.shape[-2])
    invested = since - np.log((start + 1.0) * (start + 2.0))
    return np.asarray(np.logaddexp(np.logaddexp.reduce(invested, axis=-1), -math.log(len(start) + 1)))


def log_e_worse(
    live: Float64[np.ndarray, "... K S R"], pairs: Float64[np.ndarray, "... R"] | None = None
) -> Float64[np.ndarray, "..."]:
    """Half of the capital on the pool and half on the strata; of a stream with pairs, a quarter of the total on the pairs."""
    pool = log_e_restarted(live.sum(-3))
    strata = np.logaddexp.reduce(log_e_restarted(live), axis=-1) - math.log(live.shape[-3])
    spread = np.logaddexp(pool, strata) + math.log(0.5)
    if pairs is None:
        return np.asarray(spread)
    return np.asarray(np.logaddexp(spread + math.log(LIVE_SHARE), log_mean(pairs) + math.log(PAIRS_SHARE)))


def log_e_ok(ways: Sequence[Float64[np.ndarray, "..."]]) -> Float64[np.ndarray, "..."]:
    """Equal parts of the capital on each way to OK. The whole history counts; nothing restarts."""
    return np.asarray(np.logaddexp.reduce(np.broadcast_arrays(*ways), axis=0) - math.log(len(ways)))


def count_units(
    units: Units, stream: str, arm: str | None = None, *, bad: bool | None = None, low: float = 0.0, high: float = 100.0
) -> Count:
    """Units of a stream: of one arm or of both, all or only bad (or good) ones, at weights from ``low`` to ``high``."""
    return sum(
        (
            count
            for (of, _, _, weight, by, was_bad), count in units.items()
            if of == stream and arm in (None, by) and bad in (None, was_bad) and low <= weight <= high
        ),
        start=0,
    )


def count_pairs(pairs: Pairs) -> Count:
    """Sessions whose mirrored answers were compared: the pairs of ``miss``, which every compared session has."""
    return sum((count for (stream, _), count in pairs.items() if stream == MISS), start=0)


def _pair_gains(stream: str, pairs: Pairs, points: float, sign: float) -> Float64[np.ndarray, "... R"]:
    ours = [(shift, count) for (of, shift), count in pairs.items() if of == stream]
    if not ours:
        return np.zeros(len(RATIOS))
    gains = pair_gains(np.array([shift for shift, _ in ours], np.float64), points, sign)
    return np.array([count for _, count in ours], np.float64).T @ gains


def _level_gains(units: Units, level: float) -> Float64[np.ndarray, "... R"]:
    stream = next((key[0] for key in units), "")
    good, bad = (count_units(units, stream, CANARY, bad=was) for was in (False, True))
    return np.stack(np.broadcast_arrays(good, bad), -1).astype(np.float64) @ gains_at(level, INVERSE)
