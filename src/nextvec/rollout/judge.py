"""Is the canary worse? Answered at any time, as often as one likes, without fooling oneself.

**The test.** With ``w`` the canary's share when a unit was routed, and ``rho`` how many times the stable arm's rate the
canary's is, a bad event comes from the canary with probability ``w rho / (w rho + 1 - w)``. No base rate enters, so whatever
hits both arms, an incident or a busy evening, cancels out. While ``rho <= 1 + d`` that probability is at most ``theta``, its
value at ``1 + d``. A bet at ``r > 1`` times the odds of ``theta`` multiplies its stake by ``r / (theta r + 1 - theta)`` when
the event is the canary's and by ``1 / (theta r + 1 - theta)`` when it is not: on average at most 1. The mean over several
``r`` is a non-negative supermartingale ``E`` starting at 1, and by Ville's inequality it ever reaches ``1 / alpha`` with
probability at most ``alpha``: at any stopping time, under any weights chosen before the event. Reaching it says WORSE. Odds
``1 / r`` at the declared margin test the opposite, "at least the margin worse"; reaching that bound says OK. (Lindon, Sanden
and Shirikian 2022 for canaries; Waudby-Smith and Ramdas 2023 for betting; Ville 1939.)

**Combining.** Averages of such processes are such processes whatever their dependence; products are only if each event's
probability is at most ``theta`` given all of the others before it. One unit gives a stream at most one event, so *pooling* all
events of a stream, over strata too, is a legal product, the strongest if every stratum is harmed; but a healthy majority bets
it to nothing while one stratum burns. So a stream's capital lies half on the pool and half spread over its strata: a uniform
harm costs log 2 more evidence, a harm in one of K strata log 2K. Likewise a product from the very first event is bet to nothing
by a long good history, and a leak that begins on the second day would wait for as long again; so part of the capital starts
afresh with each segment (share ``1 / (j + 1)(j + 2)`` with the j-th; a mixture over starting times as in Shin, Ramdas and
Rinaldo 2024). A quarter of a stream's capital is for mirrored pairs, where the stream can have any.

**Units.** What is randomised is the session, so a session is one unit (:mod:`nextvec.rollout.units`). Requests of one session
fail together, and a test that counts each of them alarms on identical arms.

**The state** is counts of events, integers: the order of batches cannot matter, rounding cannot accumulate, and counts of
several routers are added. Everything else is computed from them.

**Budget.** WORSE: 0.25 % each for ``fail``, ``slow``, ``miss`` and ``unlabelled``, 1 % for a whole rollout, and 0.1 % for
``assign``. OK: 5 % each and not divided, because a canary is promoted only if *all* streams say OK, so a false promotion needs
the one stream that is beyond its margin to err (intersection-union, Berger 1982).

**What it does not say.** OK is about the pool, the average unit; a stratum alone beyond the margin shows only once it is WORSE.
Nothing is said of a harm that hits both arms. And streams share their sessions' coins, so a weight that was raised because one
stream was OK knows a little of the others' coins; the simulation (:mod:`nextvec.rollout.simulate`) includes that.
"""

# Axes: R bets, S segments, K strata; "..." is free (the simulation puts its rollouts there).

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64

from nextvec.errors import ServingError

STABLE, CANARY, NEITHER = "stable", "canary", "neither"
FAIL, SLOW, MISS, UNLABELLED, ASSIGN = "fail", "slow", "miss", "unlabelled", "assign"
STREAMS = (FAIL, SLOW, MISS, UNLABELLED, ASSIGN)
PAIRED = (FAIL, SLOW, MISS)  # streams that a mirrored request can feed
WORSE, OK, UNDECIDED = "WORSE", "OK", "UNDECIDED"

RATIOS = (1.05, 1.15, 1.3, 1.6, 2.0, 3.0, 5.0, 10.0, 30.0)
INVERSE = tuple(1 / ratio for ratio in RATIOS)
ALPHA_OK = 0.05
HALF = math.log(0.5)
PAIRS, LIVE = 0.25, 0.75  # how a stream's capital is divided, where mirrored requests can feed it
MOST_UNITS = 1e10  # what would need more is said to be beyond reach


@dataclass(frozen=True)
class Guard:
    """What one stream tolerates and what its OK promises.

    Attributes:
        alpha: most often WORSE may be said of a canary within ``tolerated``, over a whole rollout.
        tolerated: the canary's rate may be ``1 + tolerated`` times the stable arm's before it counts as worse.
        margin: OK says that it is below ``1 + margin`` times.
        points: OK, from mirrored pairs, says that fewer than this share of units are hurt, net; None: pairs never say OK.
        level: OK also where fewer than this share of the canary's units is bad, whatever the stable arm does: with two
            arms that hardly ever fail no ratio can ever be shown. None: only the ratio counts.
    """

    alpha: float = 0.0025
    tolerated: float = 0.0
    margin: float = 0.5
    points: float | None = None
    level: float | None = None


GUARDS: dict[str, Guard] = {
    FAIL: Guard(tolerated=0.1, margin=1.0, level=0.002),
    SLOW: Guard(margin=0.5),  # the 1.2 is in its threshold
    MISS: Guard(margin=0.05, points=0.017),
    UNLABELLED: Guard(tolerated=0.1, margin=0.25),
    ASSIGN: Guard(alpha=0.001, margin=0.5),
}


@dataclass(frozen=True)
class Event:
    """One unit of one stream, or ``count`` alike ones.

    Attributes:
        stream: one of :data:`STREAMS`.
        arm: whose unit it was; ``neither`` for a mirrored pair, where both answered.
        weight: percent of traffic that the canary had when the unit was routed; None for a mirrored pair.
        bad: whether what the stream watches for happened. Good units move no ratio; they are the base rate's denominator.
        stratum: one of the evidence's strata.
        segment: how many fresh starts there were before it; the controller counts one a step of the ladder, or one an hour.
        shift: of a mirrored pair, -1 to 1: the share of its requests that were bad on the canary, minus that on stable.

    Raises:
        ServingError: a stream, arm, weight, segment, shift or count that does not exist.
    """

    stream: str
    arm: str
    weight: float | None
    bad: bool = True
    stratum: str = "all"
    segment: int = 0
    shift: float = 0.0
    count: int = 1

    def __post_init__(self) -> None:
        if self.stream not in STREAMS:
            raise ServingError(f"an event of stream {self.stream!r}; known: {', '.join(STREAMS)}")
        arms = (NEITHER,) if self.weight is None else (STABLE, CANARY)
        if self.arm not in arms:
            raise ServingError(f"an event of {self.stream!r} by arm {self.arm!r}; known: {', '.join(arms)}")
        if self.weight is None and self.stream not in PAIRED:
            raise ServingError(f"a mirrored pair of {self.stream!r}; only {', '.join(PAIRED)} have pairs, give a weight")
        if self.weight is not None and not 0 <= self.weight <= 100:
            raise ServingError(f"an event of {self.stream!r} at weight {self.weight}; give percent, 0 to 100")
        if self.weight == (0 if self.arm == CANARY else 100):
            raise ServingError(f"an event of {self.stream!r} by {self.arm} at weight {self.weight}, which sends it nothing")
        if not abs(self.shift) <= (1 if self.weight is None else 0):
            raise ServingError(f"an event of {self.stream!r} shifted by {self.shift}; only pairs are, by -1 to 1")
        if self.segment < 0 or self.count < 1:
            raise ServingError(f"an event of {self.stream!r} with segment {self.segment} and count {self.count}")


@dataclass(frozen=True)
class Verdict:
    """What the evidence says of each stream: WORSE, OK or UNDECIDED."""

    streams: Mapping[str, str]

    @property
    def worse(self) -> tuple[str, ...]:
        return tuple(stream for stream, said in self.streams.items() if said == WORSE)

    @property
    def overall(self) -> str:
        """WORSE if any stream is; OK if every stream is, ``assign`` too; otherwise UNDECIDED."""
        if self.worse:
            return WORSE
        return OK if all(said == OK for said in self.streams.values()) else UNDECIDED


Key = tuple[str, str, int, float, str, bool]


@dataclass(frozen=True)
class Evidence:
    """All that was seen of one rollout: a value, folded event by event and stored with every decision.

    Attributes:
        strata: their names, fixed in advance: how capital is spread must not depend on what is seen.
        guards: what each stream tolerates, fixed in advance for the same reason.
        counts: live units by (stream, stratum, segment, weight, arm, bad).
        pairs: mirrored ones by (stream, shift).
    """

    strata: tuple[str, ...] = ("all",)
    guards: Mapping[str, Guard] = field(default_factory=lambda: dict(GUARDS))
    counts: Mapping[Key, int] = field(default_factory=dict[Key, int])
    pairs: Mapping[tuple[str, float], int] = field(default_factory=dict[tuple[str, float], int])

    def __post_init__(self) -> None:
        if not self.strata or len(set(self.strata)) != len(self.strata):
            raise ServingError(f"strata {self.strata!r}; give at least one, each once")
        if tuple(sorted(self.guards)) != tuple(sorted(STREAMS)):
            raise ServingError(f"guards for {', '.join(self.guards)}; every stream needs one: {', '.join(STREAMS)}")

    def after(self, events: Event | Iterable[Event]) -> "Evidence":
        """The evidence with one event, or a batch, added; the order of events and batches makes no difference.

        Raises:
            ServingError: an event of a stratum that was not declared.
        """
        counts, pairs = dict(self.counts), dict(self.pairs)
        for event in (events,) if isinstance(events, Event) else events:
            if event.stratum not in self.strata:
                raise ServingError(f"an event of stratum {event.stratum!r}; declared: {', '.join(self.strata)}")
            if event.weight is None:
                pair = (event.stream, float(event.shift))
                pairs[pair] = pairs.get(pair, 0) + event.count
            else:
                key = (event.stream, event.stratum, event.segment, float(event.weight), event.arm, event.bad)
                counts[key] = counts.get(key, 0) + event.count
        # In one order: sums of the same counts are then the same to the bit.
        return replace(self, counts=dict(sorted(counts.items())), pairs=dict(sorted(pairs.items())))

    def seen(self, stream: str, arm: str | None = None, *, bad: bool | None = None) -> int:
        """How many live units of a stream were counted; of one arm, or only the bad ones."""
        return sum(
            count
            for (of, _, _, _, by, was_bad), count in self.counts.items()
            if of == stream and arm in (None, by) and bad in (None, was_bad)
        )

    @property
    def units(self) -> int:
        """Sessions routed so far, both arms, and those whose mirrored answers were compared."""
        return self.seen(ASSIGN) + sum(count for (stream, _), count in self.pairs.items() if stream == MISS)

    def log_e(self, stream: str) -> tuple[float, float]:
        """Natural logarithms of the stream's e-values for WORSE and for OK; 0 is no evidence."""
        guard = self.guards[stream]
        both = RATIOS + INVERSE if stream == ASSIGN else RATIOS
        live = self._live(stream, guard.tolerated, both)
        worse = log_e_worse(live, self._pairs(stream, 0.0, 1.0) if stream in PAIRED else None)
        below = self._live(stream, guard.margin, INVERSE).sum((0, 1))
        if stream == ASSIGN:
            above = self._live(stream, 1 / (1 + guard.margin) - 1, RATIOS).sum((0, 1))
            return float(worse), float(np.minimum(log_mean(below), log_mean(above)))
        ways = [below]
        if guard.points is not None:
            ways.append(self._pairs(stream, guard.points, -1.0))
        if guard.level is not None:
            ways.append(self._level(stream, guard.level))
        return float(worse), float(log_e_ok(ways))

    def verdict(self) -> Verdict:
        """What can be said now. A stream without events is UNDECIDED; WORSE goes before OK."""
        return Verdict({stream: self._said(stream) for stream in STREAMS})

    def to_json(self) -> dict[str, Any]:
        """Counts, from which all else follows, and the e-values they amount to."""
        found = {stream: self.log_e(stream) for stream in STREAMS}
        return {
            "strata": list(self.strata),
            "guards": {stream: asdict(guard) for stream, guard in self.guards.items()},
            "counts": [[*key, count] for key, count in self.counts.items()],
            "pairs": [[*key, count] for key, count in self.pairs.items()],
            "log_e": {stream: {"worse": worse, "ok": ok} for stream, (worse, ok) in found.items()},
            "verdict": dict(self.verdict().streams),
            "units": self.units,
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Evidence":
        """Read back what :meth:`to_json` wrote, to the bit.

        Raises:
            ServingError: it is not evidence, or its e-values are not those of its counts.
        """
        try:
            guards = {stream: Guard(**guard) for stream, guard in values["guards"].items()}
            live = [
                Event(stream, arm, weight, bad, stratum, segment, count=count)
                for stream, stratum, segment, weight, arm, bad, count in values["counts"]
            ]
            pairs = [
                Event(stream, NEITHER, None, True, values["strata"][0], shift=shift, count=count)
                for stream, shift, count in values["pairs"]
            ]
            evidence = Evidence(tuple(values["strata"]), guards).after([*live, *pairs])
            claimed = {stream: (found["worse"], found["ok"]) for stream, found in values["log_e"].items()}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ServingError(f"this is not a judge's evidence: {type(error).__name__} {error}") from None
        for stream in STREAMS:
            if not np.allclose(claimed.get(stream, math.nan), evidence.log_e(stream), rtol=1e-9, atol=1e-9):
                raise ServingError(f"evidence of {stream!r} was altered: its e-values are not those of its counts")
        return evidence

    def _said(self, stream: str) -> str:
        worse, ok = self.log_e(stream)
        if worse >= -math.log(self.guards[stream].alpha):
            return WORSE
        return OK if ok >= -math.log(ALPHA_OK) else UNDECIDED

    def _live(self, stream: str, tolerated: float, ratios: tuple[float, ...]) -> Float64[np.ndarray, "K S R"]:
        segments = 1 + max((key[2] for key in self.counts if key[0] == stream), default=0)
        gains = np.zeros((len(self.strata), segments, len(ratios)))
        for (of, stratum, segment, weight, arm, bad), count in self.counts.items():
            if of == stream and bad:
                won = attribution(weight, tolerated, ratios)[int(arm == CANARY)]
                gains[self.strata.index(stratum), segment] += count * won
        return gains

    def _pairs(self, stream: str, points: float, sign: float) -> Float64[np.ndarray, " R"]:
        seen = [(shift, count) for (of, shift), count in self.pairs.items() if of == stream]
        shift, count = np.array(seen, np.float64).reshape(-1, 2).T
        return count @ pair_gains(shift, points, sign)

    def _level(self, stream: str, level: float) -> Float64[np.ndarray, " R"]:
        good, bad = (self.seen(stream, CANARY, bad=was) for was in (False, True))
        return np.array([good, bad], np.float64) @ gains_at(level, INVERSE)


@lru_cache(maxsize=4096)
def attribution(weight: float, tolerated: float, ratios: tuple[float, ...]) -> Float64[np.ndarray, "2 R"]:
    """What a bad event adds to the log stake of each bet: first row if it was the stable arm's, second if the canary's."""
    harmed = weight * (1 + tolerated)
    return gains_at(harmed / (harmed + 100 - weight), ratios)


def gains_at(theta: float, ratios: tuple[float, ...]) -> Float64[np.ndarray, "2 R"]:
    """Bets that an event of probability ``theta`` has ``ratio`` times those odds: gain if it did not happen, if it did."""
    ratio = np.asarray(ratios, np.float64)
    lost = -np.log1p(theta * (ratio - 1))
    return np.stack([lost, lost + np.log(ratio)])


def pair_gains(shift: Float64[np.ndarray, " N"], points: float, sign: float) -> Float64[np.ndarray, "N R"]:
    """Bets on mirrored pairs: log gains for shifts ``x`` between -1 and 1.

    ``sign = 1`` bets against "its mean is at most ``points``", -1 against "at least"; a stake of ``lambda`` grows by
    ``1 + lambda sign (x - points)`` (Waudby-Smith and Ramdas 2023). Nothing but the bounds of ``x`` is assumed. For units of
    one request and ``points = 0`` only discordant pairs count, and the bet is that of an even coin at odds ``r``: McNemar's
    test, sequentially. Unlike the ratio of discordant pairs, or the sign of a session's net discordance, the mean is in the
    points in which a margin is declared, however often the two models differ and however long sessions are.
    """
    ratio = np.asarray(RATIOS, np.float64)
    stake = (ratio - 1) / (ratio + 1) / (1 + points)
    return np.log1p(stake * sign * (shift[:, None] - points))


def log_mean(gains: Float64[np.ndarray, "... R"]) -> Float64[np.ndarray, "..."]:
    """Log of the mean capital over bets of equal stakes."""
    highest = gains.max(-1, keepdims=True)
    return np.asarray(np.log(np.exp(gains - highest).mean(-1)) + highest[..., 0])


def log_e_restarted(gains: Float64[np.ndarray, "... S R"]) -> Float64[np.ndarray, "..."]:
    """Log capital when a share of ``1 / (j + 1)(j + 2)`` enters with segment ``j`` and what has not entered is kept."""
    since = log_mean(np.flip(np.cumsum(np.flip(gains, -2), -2), -2))
    start = np.arange(gains.shape[-2])
    entered = since - np.log((start + 1.0) * (start + 2.0))
    return np.asarray(np.logaddexp(np.logaddexp.reduce(entered, axis=-1), -math.log(len(start) + 1)))


def log_e_worse(
    live: Float64[np.ndarray, "... K S R"], pairs: Float64[np.ndarray, "... R"] | None = None
) -> Float64[np.ndarray, "..."]:
    """Half the capital on the pool and half spread over strata; of a stream that can have pairs, a quarter of all on those."""
    pool = log_e_restarted(live.sum(-3))
    strata = np.logaddexp.reduce(log_e_restarted(live), axis=-1) - math.log(live.shape[-3])
    spread = np.logaddexp(pool, strata) + HALF
    if pairs is None:
        return np.asarray(spread)
    return np.asarray(np.logaddexp(spread + math.log(LIVE), log_mean(pairs) + math.log(PAIRS)))


def log_e_ok(ways: Sequence[Float64[np.ndarray, "... R"]]) -> Float64[np.ndarray, "..."]:
    """OK by any of several ways to be OK, capital in equal parts; all of the history counts, so nothing restarts."""
    return np.asarray(np.logaddexp.reduce([log_mean(way) for way in ways], axis=0) - math.log(len(ways)))


@dataclass(frozen=True)
class Rung:
    """One step of a rollout.

    Attributes:
        weight: percent of traffic that the canary has.
        dwell: seconds that it lasts at least.
        units: sessions that must be seen at this weight before the next step.
    """

    weight: float
    dwell: float
    units: int


WEIGHTS = (5.0, 10.0, 25.0, 50.0, 98.0)  # the last keeps 2 % on stable: with nothing to compare with, every test is blind


def ladder(harm: float, base: float, dwell: float = 900.0, guard: Guard = GUARDS[FAIL]) -> tuple[Rung, ...]:
    """Steps that are long enough: at each, ``harm`` times the ``base`` rate would have been caught in 90 of 100 rollouts.

    Raises:
        ServingError: ``harm`` is within what the guard tolerates, or ``base`` is not a rate.
    """
    return tuple(Rung(weight, dwell, needed(harm, weight, base, guard.alpha, guard.tolerated)[1]) for weight in WEIGHTS)


def needed(harm: float, weight: float, base: float, alpha: float, tolerated: float = 0.0, strata: int = 1) -> tuple[int, int]:
    """Units of both arms after which ``harm`` is past the bound in half, and in 90 of 100, rollouts at this weight.

    Args:
        harm: how many times the stable arm's rate the canary's is, in all strata alike.
        weight: percent of units that are the canary's.
        base: bad events per unit of the stable arm.
        alpha, tolerated: of the stream's :class:`Guard`.
        strata: how many the evidence has.

    Raises:
        ServingError: no number of units would do, or a rate or weight is none.
    """
    _check_rates(weight, base, alpha)

    def from_(power: float) -> int:
        return math.ceil(_least(lambda units: _caught(units, harm, weight, base, alpha, tolerated, strata) >= power, 1.0))

    if harm <= 1 + tolerated or _caught(MOST_UNITS, harm, weight, base, alpha, tolerated, strata) < 0.9:
        raise ServingError(f"a harm of {harm:g} where {1 + tolerated:g} is tolerated is too small to be caught, ever")
    return from_(0.5), from_(0.9)


@lru_cache(maxsize=1024)  # a report asks for every step and stream, of which one is still growing
def detectable(
    n_units: int,
    weight: float,
    base_rate: float,
    alpha: float,
    power: float = 0.9,
    tolerated: float = 0.0,
    strata: int = 1,
) -> float | None:
    """The smallest harm that would have been caught with probability ``power``; None if no harm would have been.

    Harm is how many times the stable arm's rate the canary's is, at most ``1 / base_rate``: always bad. What is smaller may be
    there and could not have been seen. Arguments as of :func:`needed`.

    Raises:
        ServingError: a rate, weight or number of units that is none.
    """
    _check_rates(weight, base_rate, alpha)
    if n_units < 0:
        raise ServingError(f"{n_units} units; give 0 or more")

    def seen(harm: float) -> bool:
        return _caught(float(n_units), harm, weight, base_rate, alpha, tolerated, strata) >= power

    most = 1 / base_rate
    return _least(seen, 1 + tolerated, most) if most > 1 + tolerated and seen(most) else None


def _caught(units: float, harm: float, weight: float, base: float, alpha: float, tolerated: float, strata: int) -> float:
    """The probability that E is past the bound *at* so many units; a little less than that it has ever been.

    Bad events of the arms are taken as independent Poisson counts; of frequent ones the true spread is smaller.
    """
    stable, stable_chance = _poisson(units * (1 - weight / 100) * base)
    canary, canary_chance = _poisson(units * weight / 100 * min(1.0, base * harm))
    if_stable, if_canary = attribution(weight, tolerated, RATIOS)
    entered = LIVE / 2 if strata == 1 else LIVE / 4  # half of it with the first segment
    log_e = log_mean(stable[:, None, None] * if_stable + canary[:, None] * if_canary) + math.log(entered)
    return float(stable_chance @ (log_e >= -math.log(alpha)) @ canary_chance)


def _poisson(mean: float) -> tuple[Float64[np.ndarray, " V"], Float64[np.ndarray, " V"]]:
    """Values within seven deviations, thinned to at most some hundred, and their probabilities."""
    reach = 7 * math.sqrt(mean) + 10
    low, high = max(0, math.floor(mean - reach)), math.ceil(mean + reach)
    values = np.arange(low, high + 1, 1 + (high - low) // 200, dtype=np.float64)
    logs = values * math.log(max(mean, 1e-300)) - np.array([math.lgamma(value + 1) for value in values])
    chances = np.exp(logs - logs.max())
    return values, chances / chances.sum()


def _least(holds: Callable[[float], bool], low: float, high: float | None = None) -> float:
    """The smallest value from which on ``holds``, to a thousandth; found by doubling where ``high`` is not known."""
    if high is None:
        high = low
        while not holds(high):
            low, high = high, high * 2
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check_rates(weight: float, base: float, alpha: float) -> None:
    if not 0 < weight < 100:
        raise ServingError(f"a weight of {weight:g} percent; with no traffic on one arm nothing can be compared, give 0 to 100")
    if not 0 < base <= 1 or not 0 < alpha < 1:
        raise ServingError(f"a base rate of {base:g} and alpha {alpha:g}; both are shares between 0 and 1")
