"""A cohort: many rollouts over the same traffic and harm, with a random assignment of the sessions in each."""

# Axes: N requests, U sessions, A rollouts, n requests of a block.

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64

from nextvec.rollout.plan import Plan
from nextvec.rollout.simulation.harms import Harm
from nextvec.rollout.simulation.traffic import Traffic
from nextvec.rollout.threshold import TAIL
from nextvec.rollout.units import EDGES, selected
from nextvec.routing import BUCKETS

SALT = "simulation"  # of the selection of each session's request
NEVER = 2**31 - 1


@dataclass(frozen=True)
class Cohort:
    """Rollouts over the same traffic and harm.

    Attributes:
        stable, canary: outcomes of every request on each arm.
        bias: of the router, see :class:`Harm`.
        bucket: [A, U] bucket of each session in each rollout, 0 to 9,999.
    """

    stable: Traffic
    canary: Traffic
    bias: float
    bucket: np.ndarray

    @staticmethod
    def draw(traffic: Traffic, harm: Harm, rollouts: int, rng: np.random.Generator) -> "Cohort":
        """``rollouts`` random assignments."""
        stable, canary = harm.outcomes(traffic, rng)
        sessions = int(traffic.session.max()) + 1
        bucket = rng.integers(0, BUCKETS, (rollouts, sessions), dtype=np.uint16)
        return Cohort(stable, canary, harm.bias, bucket)

    @cached_property
    def by_session(self) -> Int64[np.ndarray, " N"]:
        """Rows ordered by session, then by time."""
        return np.argsort(self.stable.session, kind="stable")

    @cached_property
    def begin(self) -> Int64[np.ndarray, " U"]:
        """Where each session begins in :attr:`by_session`."""
        return np.searchsorted(self.stable.session[self.by_session], np.arange(self.bucket.shape[1]))

    @cached_property
    def position(self) -> Int64[np.ndarray, " N"]:
        """Index of each request in its session."""
        found = np.empty(len(self.stable), np.int64)
        found[self.by_session] = np.arange(len(self.stable)) - self.begin[self.stable.session[self.by_session]]
        return found

    @cached_property
    def first(self) -> Int64[np.ndarray, " U"]:
        """Row of each session's first request."""
        return self.by_session[self.begin]

    @cached_property
    def is_last(self) -> Bool[np.ndarray, " N"]:
        """Whether a request is the last one of its session."""
        found = np.zeros(len(self.stable), bool)
        found[self.by_session[np.append(self.begin[1:], len(self.stable)) - 1]] = True
        return found

    @cached_property
    def selected(self) -> Int64[np.ndarray, " U"]:
        """Index of the request, or label, of each session that counts."""
        return np.array([min(selected(SALT, str(u)), NEVER) for u in range(self.bucket.shape[1])], np.int64)

    @cached_property
    def stratum(self) -> Int64[np.ndarray, " N"]:
        """Index of each request's stratum among :func:`~nextvec.rollout.units.bands`."""
        return np.searchsorted(EDGES, self.stable.vectors).astype(np.int64)

    def running_sum(self, values: np.ndarray) -> Int64[np.ndarray, " N"]:
        """Sum of a value over the requests of the same session up to each request."""
        ordered = values[self.by_session].astype(np.int64)
        sums = np.cumsum(ordered)
        before = (sums - ordered)[self.begin]
        found = np.empty(len(ordered), np.int64)
        found[self.by_session] = sums - before[self.stable.session[self.by_session]]
        return found

    def assigned(self, bucket: np.ndarray, weight: Float64[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
        """Whether buckets go to the canary at a weight in percent."""
        return bucket < np.round(weight * self.bias * BUCKETS / 100)

    def counted_rows(self) -> Int64[np.ndarray, " n"]:
        """Rows of the selected requests, if every session is routed from its first request."""
        sizes = np.diff(np.append(self.begin, len(self.stable)))
        has = self.selected < sizes
        return np.sort(self.by_session[(self.begin + self.selected)[has]])

    def log_percentile(self, rows: Int64[np.ndarray, " n"], stratum: int) -> float:
        """The stable arm's log 95th percentile of the latency of these requests in a stratum; NaN without requests."""
        logs = np.log(self.stable.latency[rows[self.stratum[rows] == stratum]])
        return float(np.percentile(logs, 100 * (1 - TAIL))) if len(logs) else math.nan


def default_plan(traffic: Traffic) -> Plan:
    """A plan whose steps detect ten times the traffic's own failure rate, or less if that rate is high."""
    bad = np.zeros(int(traffic.session.max()) + 1, bool)
    bad[traffic.session[traffic.failed]] = True
    base = max(float(bad.mean()), 1e-6)
    return Plan.detecting(max(2.0, min(10.0, 0.5 / base)), base)
