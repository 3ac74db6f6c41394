"""Whole rollouts, dry: how often a perfect canary would be rolled back, and how soon a bad one is.

A request has two outcomes, one on each arm, and only one of them happens: which one is the coin's choice. So a rollout over
given traffic is an assignment of its sessions, many rollouts are many assignments side by side, and recorded traffic serves as
well as made. Everything runs on arrays with one row a rollout; the judge's own functions do the judging.

Where this is simpler than a server: buckets come from a random generator instead of a keyed hash, which request of a session
counts is drawn once for all rollouts over the same traffic, the slowness threshold and the verdict move once a block of
requests, a label arrives with its prediction, and only ``miss`` has mirrored pairs.
"""

# Axes: N requests, U sessions, A rollouts, n what a block holds, K strata, S segments, R bets.

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet
from jaxtyping import Bool, Float64, Int64

from nextvec.errors import ServingError
from nextvec.rollout.judge import (
    ALPHA_OK,
    ASSIGN,
    FAIL,
    GUARDS,
    INVERSE,
    MISS,
    PAIRED,
    RATIOS,
    SLOW,
    STREAMS,
    UNLABELLED,
    Guard,
    Rung,
    attribution,
    gains_at,
    ladder,
    log_e_ok,
    log_e_worse,
    log_mean,
    needed,
    pair_gains,
)
from nextvec.rollout.units import EDGES, GAIN, TAIL, TOLERATED, settled

COLUMNS = ("time", "session", "n_vectors", "latency_ms", "failed", "hit")
SIDE_BY_SIDE = 100  # rollouts
MIRRORED = 0.5  # of the sessions, in shadow
PEEK = 1_000  # requests between two looks of the fixed-horizon test
MINUTE = 60.0
P95 = 0.95
Z_THREE = 2.128  # one-sided 5 % over three figures


@dataclass(frozen=True)
class Traffic:
    """Requests in order of time, as the stable arm answered them.

    Attributes:
        time: seconds.
        session: numbered from 0.
        vectors: of the context.
        latency: milliseconds.
        failed: whether the answer was an error.
        hit: 1 or 0; -1 where no label ever came.
    """

    time: Float64[np.ndarray, " N"]
    session: Int64[np.ndarray, " N"]
    vectors: Int64[np.ndarray, " N"]
    latency: Float64[np.ndarray, " N"]
    failed: Bool[np.ndarray, " N"]
    hit: Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.time)


@dataclass(frozen=True)
class Harm:
    """What is wrong with a canary, or with the trial itself.

    Attributes:
        errors: share of its requests that fail in addition.
        slowness: its latency, as a multiple.
        points: share of its hits' points lost, 0.03 for three points of Hit@K.
        lost: share of its labels that never arrive.
        bias: what the router gives it, as a share of what it should.
        both: whether the stable arm suffers the same.
        discordance: share of predictions where the two models' hits differ, in either direction.
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
        """What each request would be on the stable arm and on the canary."""
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


def recorded(path: Path) -> Traffic:
    """Traffic from a ``.jsonl`` or ``.parquet`` of time, session, n_vectors, latency_ms, failed, hit; ``hit`` may be null.

    Raises:
        ServingError: no such file, a column missing, nothing in it, or values that are no measurements.
    """
    try:
        table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.json.read_json(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ServingError(f"{path} is not readable traffic: {str(error).splitlines()[0]}") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise ServingError(f"{path} has no column {missing[0]!r}; traffic needs {', '.join(COLUMNS)}")
    if not len(table):
        raise ServingError(f"{path} holds no request")
    columns = {name: table[name].to_numpy() for name in COLUMNS if name != "hit"}
    time, latency = (columns[name].astype(np.float64) for name in ("time", "latency_ms"))
    if not (np.isfinite(time).all() and (np.isfinite(latency) & (latency > 0)).all()):
        raise ServingError(f"{path} has a time or latency_ms that is no positive number")
    hit = np.array([-1 if value is None else int(value) for value in table["hit"].to_pylist()], np.int64)
    order = np.argsort(time, kind="stable")
    _, session = np.unique(columns["session"].astype(str), return_inverse=True)
    vectors, failed = columns["n_vectors"].astype(np.int64), columns["failed"].astype(bool)
    return Traffic(*(column[order] for column in (time, session.astype(np.int64), vectors, latency, failed, hit)))


def synthetic(
    rng: np.random.Generator,
    requests: int = 600_000,
    rate: float = 20.0,
    session: float = 8.0,
    failing: float = 0.001,
    hit: float = 0.55,
) -> Traffic:
    """Traffic as unkind as it comes: clustered failures, busy hours, incidents, sessions that are slow as a whole.

    Args:
        rate: requests a second, on average.
        session: requests of one, on average (geometric).
        failing, hit: shares of requests.
    """
    sizes = rng.geometric(1 / session, max(1, round(requests / session)))
    total, span = int(sizes.sum()), requests / rate
    owner = np.repeat(np.arange(len(sizes)), sizes)
    gaps = rng.exponential(20.0, total)
    ends = np.cumsum(sizes)
    since = np.cumsum(gaps)
    since -= np.repeat(since[ends - sizes], sizes)
    time = np.repeat(rng.random(len(sizes)) * span, sizes) + since
    position = np.arange(total) - np.repeat(ends - sizes, sizes)
    vectors = np.repeat(np.exp(rng.normal(3.0, 1.5, len(sizes))).astype(np.int64) + 1, sizes) + position
    busy = 1 + 0.3 * np.sin(2 * np.pi * time / span)
    incident = np.isin(
        (time // 300).astype(np.int64), rng.choice(max(1, int(span // 300)), max(1, int(span // 9000)), replace=False)
    )
    speed = np.repeat(rng.normal(0, 0.2, len(sizes)), sizes) + rng.normal(0, 0.45, total)
    latency = 1.5 * busy * (1 + vectors / 500) * np.exp(speed) * np.where(incident, 2.0, 1.0)
    frailty = np.repeat(rng.gamma(0.2, 5.0, len(sizes)), sizes)
    failed = rng.random(total) < failing * frailty * np.where(incident, 20.0, 1.0)
    easy = np.repeat(rng.normal(0, 0.2, len(sizes)), sizes)
    hits = (rng.random(total) < np.clip(hit + easy, 0, 1)).astype(np.int64)
    hits[ends - 1] = -1  # nothing follows the last
    order = np.argsort(time, kind="stable")
    return Traffic(*(column[order] for column in (time, owner, vectors, latency, failed, hits)))


def simulate(
    traffic: Traffic | Callable[[np.random.Generator], Traffic],
    harms: Sequence[Harm] = (EQUAL, *HARMS),
    rollouts: int = 200,
    seed: int = 0,
    rungs: Sequence[Rung] | None = None,
    shadow: bool = False,
    rules: bool = True,
    look: int = 2_000,
) -> list[dict[str, Any]]:
    """How rollouts of each harm end: one JSON-able row a harm and rule.

    Args:
        traffic: recorded, or a function that makes it, called anew for every 100 rollouts.
        rungs: the ladder; by default one on which ten times the traffic's own failures would have been caught at each step.
        shadow: begin with mirrored pairs, at weight 0, until ``miss`` is OK. Otherwise at the first rung.
        look: requests from one verdict to the next; a rollback is counted at the verdict.
        rules: also what two customary rules would have done over the same requests, with the ladder's weights for a quarter
            of the time each: P95 of the canary above 1.2 times stable's in any minute, none and three of which are tolerated;
            and one-sided z-tests of failures, latency and misses, 5 % together, looked at every 1,000 requests.

    Returns:
        ``harm``, ``rule``, ``rollouts``, ``rolled_back`` (share), ``requests`` until then (``median``, ``p90``, both arms),
        ``undetected`` (share), ``promoted`` (share) and, of the judge, ``by`` (which stream said so, shares).
    """
    ends: dict[tuple[str, str], list[_Ends]] = {}
    for harm in harms:
        for n, begin in enumerate(range(0, rollouts, SIDE_BY_SIDE)):
            rng = np.random.default_rng([seed, n])
            given = traffic if isinstance(traffic, Traffic) else traffic(rng)
            group = _Group.over(given, harm, min(SIDE_BY_SIDE, rollouts - begin), rng)
            found = {"judge": _judged(group, rungs or _default_ladder(given), shadow, look, rng)}
            if rules:
                found |= _seed_rule(group) | {"z-tests, peeked": _z_test(group)}
            for rule, end in found.items():
                ends.setdefault((harm.name, rule), []).append(end)
    return [_row(harm, rule, parts) for (harm, rule), parts in ends.items()]


def stated(traffic: Traffic, harm: Harm, weight: float = 5.0, seed: int = 0) -> dict[str, Any]:
    """What the theory says of a harm over this traffic at one weight: the stream that needs the fewest units, and how many.

    Returns:
        ``stream``, the stable arm's ``base`` rate of it per session, the harm as a ``ratio`` of it, and ``units`` that suffice
        in 90 of 100 rollouts. All None where no stream is to see anything. ``assign`` is not among them: its harm is no ratio.
    """
    group = _Group.over(traffic, harm, 1, np.random.default_rng(seed))
    found: list[dict[str, Any]] = []
    for stream, (base, bad) in _rates(group).items():
        guard = GUARDS[stream]
        if bad > base * (1 + guard.tolerated) * 1.02:  # what chance alone makes of it is no harm
            units = needed(bad / base, weight, base, guard.alpha, guard.tolerated, len(EDGES) + 1)[1]
            found.append({"stream": stream, "base": base, "ratio": bad / base, "units": units})
    return min(found, key=lambda row: row["units"], default=dict.fromkeys(("stream", "base", "ratio", "units")))


def _rates(group: "_Group") -> dict[str, tuple[float, float]]:
    """Bad units a session on either arm, if all were on it."""
    tail = np.array([_start(group, group.counted, k) for k in range(len(EDGES) + 1)])[group.stratum]
    rates = []
    for arm, tolerated in ((group.stable, 1.0), (group.canary, TOLERATED)):
        failed = np.bincount(arm.session, arm.failed) > 0
        slow = np.log(arm.latency / tolerated)[group.counted] > tail[group.counted]
        hit = arm.hit[group.counted]
        rates.append([failed.mean(), *(x.sum() / len(failed) for x in (slow, hit == 0, hit < 0))])
    return {s: (float(a), float(b)) for s, a, b in zip((FAIL, SLOW, MISS, UNLABELLED), *rates, strict=True)}


def _start(group: "_Group", rows: Int64[np.ndarray, " n"], stratum: int) -> float:
    """The stable arm's log 95th percentile of these requests; NaN where there are none."""
    seen = np.log(group.stable.latency[rows[group.stratum[rows] == stratum]])
    return float(np.percentile(seen, 100 * (1 - TAIL))) if len(seen) else math.nan


@dataclass(frozen=True)
class _Ends:
    """Where each rollout of a group ended: after how many requests it was rolled back (-1: never) and by which stream."""

    requests: Int64[np.ndarray, " A"]
    stream: Int64[np.ndarray, " A"]
    promoted: Bool[np.ndarray, " A"]


def _row(harm: str, rule: str, parts: Sequence[_Ends]) -> dict[str, Any]:
    requests, stream, promoted = (np.concatenate([getattr(part, name) for part in parts]) for name in _Ends.__annotations__)
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


def _default_ladder(traffic: Traffic) -> tuple[Rung, ...]:
    bad = np.zeros(int(traffic.session.max()) + 1, bool)
    bad[traffic.session[traffic.failed]] = True
    base = max(float(bad.mean()), 1e-6)
    return ladder(max(2.0, min(10.0, 0.5 / base)), base)


@dataclass(frozen=True)
class _Group:
    """Some rollouts over the same traffic and harm.

    Attributes:
        bucket: [A, U] where each rollout deals each session, 0 to 9,999.
        first, last, counted: rows of each session's first and last request, and of the one that counts.
        stratum: of each request.
    """

    stable: Traffic
    canary: Traffic
    bias: float
    bucket: np.ndarray
    first: Int64[np.ndarray, " U"]
    last: Int64[np.ndarray, " U"]
    counted: Int64[np.ndarray, " C"]
    stratum: Int64[np.ndarray, " N"]

    @staticmethod
    def over(traffic: Traffic, harm: Harm, rollouts: int, rng: np.random.Generator) -> "_Group":
        stable, canary = harm.outcomes(traffic, rng)
        sessions, first, sizes = np.unique(traffic.session, return_index=True, return_counts=True)
        by_session = np.argsort(traffic.session, kind="stable")
        begin = np.cumsum(sizes) - sizes
        draw = np.floor(1 / (1 - rng.random(len(sessions)))).astype(np.int64) - 1
        counted = np.sort(by_session[(begin + draw)[draw < sizes]])
        last = by_session[begin + sizes - 1]
        bucket = rng.integers(0, 10_000, (rollouts, len(sessions)), dtype=np.uint16)
        stratum = np.searchsorted(EDGES, traffic.vectors).astype(np.int64)
        return _Group(stable, canary, harm.bias, bucket, first, last, counted, stratum)

    def on_canary(self, rows: Int64[np.ndarray, " n"], weight: Float64[np.ndarray, " A"], who: np.ndarray) -> np.ndarray:
        """[A, n] whether each rollout of ``who`` sends each request to the canary at its weight, in percent."""
        return self.bucket[np.ix_(who, self.stable.session[rows])] < (weight * 100 * self.bias)[:, None]


class _Capital:
    """The judge's state, one row a rollout: what it is in :class:`~nextvec.rollout.judge.Evidence`, as arrays."""

    def __init__(self, rollouts: int, strata: int, weights: Float64[np.ndarray, " S"]) -> None:
        self.weights, self.strata = weights, strata
        shape = (rollouts, strata, len(weights))
        self.live = {s: np.zeros((*shape, len(self._bets(s)))) for s in STREAMS}
        self.below = {s: np.zeros((rollouts, len(RATIOS))) for s in STREAMS}
        self.above = np.zeros((rollouts, len(RATIOS)))
        self.pairs = {sign: np.zeros((rollouts, len(RATIOS))) for sign in (1.0, -1.0)}
        self.level = np.zeros((rollouts, 2))

    @staticmethod
    def _bets(stream: str) -> tuple[float, ...]:
        return RATIOS + INVERSE if stream == ASSIGN else RATIOS

    def keep(self, who: np.ndarray) -> None:
        """Forget the rollouts that are over."""
        self.live = {s: gains[who] for s, gains in self.live.items()}
        self.below = {s: gains[who] for s, gains in self.below.items()}
        self.pairs = {sign: gains[who] for sign, gains in self.pairs.items()}
        self.above, self.level = self.above[who], self.level[who]

    def add(self, stream: str, at: np.ndarray, weight: float, segment: int, counts: Float64[np.ndarray, "a K 2"]) -> None:
        """Bad events by stratum and arm, of the rollouts ``at``, which routed them at ``weight`` in ``segment``."""
        guard: Guard = GUARDS[stream]
        self.live[stream][at, :, segment] += counts @ attribution(weight, guard.tolerated, self._bets(stream))
        self.below[stream][at] += counts.sum(1) @ attribution(weight, guard.margin, INVERSE)
        if stream == ASSIGN:
            self.above[at] += counts.sum(1) @ attribution(weight, 1 / (1 + guard.margin) - 1, RATIOS)

    def judged(self) -> tuple[np.ndarray, np.ndarray]:
        """[A, streams] whether each is WORSE, and whether each is OK."""
        worse, ok = [], []
        for stream in STREAMS:
            guard = GUARDS[stream]
            on_pairs = self.pairs[1.0] if stream == MISS else np.zeros_like(self.above)
            log_e = log_e_worse(self.live[stream], on_pairs if stream in PAIRED else None)
            worse.append(log_e >= -math.log(guard.alpha))
            ok.append(self._ok(stream, guard) >= -math.log(ALPHA_OK))
        return np.stack(worse, 1), np.stack(ok, 1)

    def _ok(self, stream: str, guard: Guard) -> np.ndarray:
        if stream == ASSIGN:
            return np.minimum(log_mean(self.below[stream]), log_mean(self.above))
        ways = [self.below[stream]]
        if guard.points is not None:
            ways.append(self.pairs[-1.0])
        if guard.level is not None:
            ways.append(self.level @ gains_at(guard.level, INVERSE))
        return log_e_ok(ways)


def _judged(group: _Group, rungs: Sequence[Rung], shadow: bool, look: int, rng: np.random.Generator) -> _Ends:
    run = _Rollouts(group, rungs, shadow, look, rng)
    for begin in range(0, len(group.stable), look):
        if not len(run.who):
            break
        run.block(begin, min(begin + look, len(group.stable)))
    return run.ends


class _Rollouts:
    """All rollouts of a group, block by block, up the ladder. Phase 0 is the shadow; arrays hold those that still run."""

    def __init__(self, group: _Group, rungs: Sequence[Rung], shadow: bool, look: int, rng: np.random.Generator) -> None:
        count = len(group.bucket)
        self.group, self.rungs, self.look, self.rng = group, rungs, look, rng
        self.who: Int64[np.ndarray, " A"] = np.arange(count)
        self.weights = np.array([0.0, *(rung.weight for rung in rungs)])
        self.phase: Int64[np.ndarray, " A"] = np.full(count, 0 if shadow else 1)
        self.since: Float64[np.ndarray, " A"] = np.full(count, group.stable.time[0])
        self.units: Float64[np.ndarray, " A"] = np.zeros(count)
        self.history = np.zeros((-(-len(group.stable) // look), count), np.int8)  # phase of every rollout by block
        self.failed = np.zeros(group.bucket.shape, bool)
        strata = len(EDGES) + 1
        self.log_tau = np.full((count, strata), np.nan)
        self.capital = _Capital(count, strata, self.weights)
        self.ends = _Ends(np.full(count, -1), np.full(count, -1), np.zeros(count, bool))

    def block(self, begin: int, end: int) -> None:
        """Requests ``begin:end`` happen, then all are judged once."""
        g = self.group
        self.history[begin // self.look, self.who] = self.phase
        counted = g.counted[slice(*np.searchsorted(g.counted, (begin, end)))]
        self._assign(g.first[(g.first >= begin) & (g.first < end)])
        self._fail(begin, end)
        self._slow(counted)
        self._labels(counted)
        self._close(g.last[(g.last >= begin) & (g.last < end)])
        self._move(end)

    def _arms(self, rows: Int64[np.ndarray, " n"]) -> np.ndarray:
        return self.group.on_canary(rows, self.weights[self.phase], self.who)

    def _add(self, stream: str, rows: Int64[np.ndarray, " n"], arms: np.ndarray, bad: np.ndarray) -> None:
        counts = self._by_stratum(rows, arms, bad)
        for phase in np.unique(self.phase[self.phase > 0]):
            at = np.flatnonzero(self.phase == phase)
            self.capital.add(stream, at, float(self.weights[phase]), int(phase), counts[at])

    def _by_stratum(self, rows: Int64[np.ndarray, " n"], arms: np.ndarray, bad: np.ndarray) -> Float64[np.ndarray, "A K 2"]:
        member = np.eye(self.capital.strata, dtype=np.float32)[self.group.stratum[rows]]
        canary = (bad & arms).astype(np.float32) @ member
        return np.stack([bad.astype(np.float32) @ member - canary, canary], -1).astype(np.float64)

    def _assign(self, rows: Int64[np.ndarray, " n"]) -> None:
        arms = self._arms(rows)
        self._add(ASSIGN, rows, arms, np.ones_like(arms))
        self.units += len(rows) * (self.phase > 0)

    def _fail(self, begin: int, end: int) -> None:
        """First failures; of a session's several in one block the first happens first."""
        g = self.group
        rows = begin + np.flatnonzero(g.stable.failed[begin:end] | g.canary.failed[begin:end])
        while len(rows):
            _, firsts = np.unique(g.stable.session[rows], return_index=True)
            now, rows = rows[firsts], np.delete(rows, firsts)
            sessions = np.ix_(self.who, g.stable.session[now])
            arms = self._arms(now)
            bad = np.where(arms, g.canary.failed[now], g.stable.failed[now]) & ~self.failed[sessions]
            self.failed[sessions] |= bad
            self._add(FAIL, now, arms, bad)
            self.capital.level[:, 1] += (bad & arms).sum(1)

    def _slow(self, rows: Int64[np.ndarray, " n"]) -> None:
        g = self.group
        birth = g.first[g.stable.session[rows]] // self.look
        born = self.history[np.ix_(birth, self.who)].T
        arms, stratum = self._arms(rows), g.stratum[rows]
        kept = arms == (g.bucket[np.ix_(self.who, g.stable.session[rows])] < self.weights[born] * 100 * g.bias)
        tau = self.log_tau[:, stratum]
        above = np.log(np.where(arms, g.canary.latency[rows] / TOLERATED, g.stable.latency[rows])) > tau  # False at NaN
        bad = above & kept
        for phase in np.unique(self.phase[self.phase > 0]):
            at = np.flatnonzero(self.phase == phase)
            for low in np.unique(born[at]):
                counts = self._by_stratum(rows, arms, bad & (born == low))
                weight = settled(float(self.weights[low]), float(self.weights[phase]))
                self.capital.add(SLOW, at, weight, int(phase), counts[at])
        self._learn(rows, kept & ~arms, above)

    def _learn(self, rows: Int64[np.ndarray, " n"], teaches: np.ndarray, above: np.ndarray) -> None:
        member = np.eye(self.capital.strata, dtype=np.float32)[self.group.stratum[rows]]
        move = GAIN * ((teaches & above).astype(np.float32) @ member - TAIL * (teaches.astype(np.float32) @ member))
        first = [_start(self.group, rows, k) for k in range(self.capital.strata)]
        self.log_tau = np.where(np.isnan(self.log_tau), first, self.log_tau + move)

    def _labels(self, rows: Int64[np.ndarray, " n"]) -> None:
        g = self.group
        arms = self._arms(rows)
        hit = np.where(arms, g.canary.hit[rows], g.stable.hit[rows])
        self._add(MISS, rows, arms, hit == 0)
        self._add(UNLABELLED, rows, arms, hit < 0)

    def _close(self, rows: Int64[np.ndarray, " n"]) -> None:
        g = self.group
        sessions = g.stable.session[rows]
        good = self._arms(rows) & ~self.failed[np.ix_(self.who, sessions)]
        self.capital.level[:, 0] += good.sum(1)
        if (self.phase == 0).any():
            self._mirror(sessions)

    def _mirror(self, sessions: Int64[np.ndarray, " n"]) -> None:
        g = self.group
        both = (g.stable.hit >= 0) & (g.canary.hit >= 0)
        net, labels = (
            np.bincount(g.stable.session, x, len(g.first))[sessions] for x in ((g.stable.hit - g.canary.hit) * both, both)
        )
        seen = (self.rng.random((len(self.who), len(sessions))) < MIRRORED) & (self.phase == 0)[:, None] & (labels > 0)
        for sign, points in ((1.0, 0.0), (-1.0, GUARDS[MISS].points or 0.0)):
            self.capital.pairs[sign] += seen @ pair_gains(net / np.maximum(labels, 1), points, sign)

    def _move(self, end: int) -> None:
        """Judge, and go up, back or out."""
        now = self.group.stable.time[end - 1]
        worse, ok = self.capital.judged()
        back = worse.any(1)
        self.ends.requests[self.who[back]], self.ends.stream[self.who[back]] = end, worse[back].argmax(1)
        rung = np.maximum(self.phase - 1, 0)
        stayed = now - self.since >= np.array([r.dwell for r in self.rungs])[rung]
        enough = stayed & (self.units >= np.array([r.units for r in self.rungs])[rung])
        enough &= np.where(self.phase == len(self.rungs) - 1, ok.all(1), True)
        enough = np.where(self.phase == 0, ok[:, STREAMS.index(MISS)], np.where(self.phase == len(self.rungs), stayed, enough))
        out = ~back & enough & (self.phase == len(self.rungs))
        self.ends.promoted[self.who[out]] = True
        up = ~back & enough
        self.phase, self.since = self.phase + up, np.where(up, now, self.since)
        self.units = np.where(up, 0, self.units)
        self._keep(~(back | out))

    def _keep(self, stays: np.ndarray) -> None:
        self.who, self.phase, self.log_tau = self.who[stays], self.phase[stays], self.log_tau[stays]
        self.since, self.units = self.since[stays], self.units[stays]
        self.capital.keep(stays)


def _schedule(group: _Group) -> Float64[np.ndarray, " N"]:
    """The weight of every request when nobody judges: 5, 10, 25, 50 % for a quarter of the time each."""
    time = group.stable.time
    quarter = np.minimum(4 * (time - time[0]) / max(time[-1] - time[0], 1e-9), 3).astype(np.int64)
    return np.array([5.0, 10.0, 25.0, 50.0])[quarter]


def _scheduled(group: _Group, rows: Int64[np.ndarray, " n"], weights: Float64[np.ndarray, " N"]) -> np.ndarray:
    return group.bucket[:, group.stable.session[rows]] < weights[rows] * 100 * group.bias


def _seed_rule(group: _Group) -> dict[str, _Ends]:
    """P95(canary) above 1.2 x P95(stable) in a minute is a failure; the first, or the fourth, rolls back."""
    weights, minute = _schedule(group), (group.stable.time // MINUTE).astype(np.int64)
    edges = np.append(np.flatnonzero(np.diff(minute, prepend=minute[0] - 1)), len(minute))
    failures = np.zeros(len(group.bucket), np.int64)
    ends = {tolerated: np.full(len(group.bucket), -1) for tolerated in (0, 3)}
    for begin, end in itertools.pairwise(edges):
        rows = np.arange(begin, end)
        arms = _scheduled(group, rows, weights)
        failures += _p95(group.canary.latency[rows], arms) > TOLERATED * _p95(group.stable.latency[rows], ~arms)
        for tolerated, found in ends.items():
            found[(failures > tolerated) & (found < 0)] = end
    nobody = np.zeros(len(group.bucket), bool)
    return {f"P95 a minute, {n} tolerated": _Ends(found, np.full(len(found), -1), nobody) for n, found in ends.items()}


def _p95(latency: Float64[np.ndarray, " n"], chosen: np.ndarray) -> np.ndarray:
    """Of the chosen of each row, nearest rank; NaN, which is above nothing, where none is."""
    order = np.argsort(latency)
    below = np.cumsum(chosen[:, order], axis=1, dtype=np.int32)
    rank = np.ceil(P95 * below[:, -1])
    place = (below >= rank[:, None]).argmax(1)
    return np.where(below[:, -1] > 0, latency[order][place], np.nan)


def _z_test(group: _Group) -> _Ends:
    """Fixed-horizon tests of failures, log latency (1.2 x tolerated) and misses, looked at again and again."""
    weights, count = _schedule(group), len(group.bucket)
    figures = [_figures(arm) for arm in (group.stable, group.canary)]
    sums = np.zeros((2, count, 3, 3))  # arm, rollout, figure, (n, sum, sum of squares)
    ends = np.full(count, -1)
    for begin in range(0, len(weights), PEEK):
        rows = np.arange(begin, min(begin + PEEK, len(weights)))
        arms = _scheduled(group, rows, weights)
        for arm, took in enumerate((~arms, arms)):
            sums[arm] += (took.astype(np.float64) @ figures[arm][rows].reshape(len(rows), -1)).reshape(count, 3, 3)
        ends[(ends < 0) & (_z(sums) > Z_THREE).any(1)] = rows[-1] + 1
    return _Ends(ends, np.full(count, -1), np.zeros(count, bool))


def _figures(arm: Traffic) -> Float64[np.ndarray, "N 3 3"]:
    values = np.stack([arm.failed.astype(np.float64), np.log(arm.latency), (arm.hit == 0).astype(np.float64)], 1)
    present = np.stack([np.ones(len(arm)), np.ones(len(arm)), (arm.hit >= 0).astype(np.float64)], 1)
    return np.stack([present, values * present, values**2 * present], -1)


def _z(sums: Float64[np.ndarray, "2 A 3 3"]) -> Float64[np.ndarray, "A 3"]:
    n = np.maximum(sums[..., 0], 1)
    mean = sums[..., 1] / n
    error = np.sqrt((np.maximum(sums[..., 2] / n - mean**2, 0) / n).sum(0))
    return (mean[1] - mean[0] - np.array([0, math.log(TOLERATED), 0])) / np.maximum(error, 1e-12)
