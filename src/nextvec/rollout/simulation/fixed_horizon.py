"""Customary rules, for comparison: a P95 rule per minute and repeated fixed-horizon tests, on a fixed schedule of weights."""

# Axes: N requests, A rollouts, n requests of a block.

import math
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64

from nextvec.rollout.simulation.cohort import Cohort
from nextvec.rollout.simulation.driver import Ends
from nextvec.rollout.simulation.traffic import Traffic
from nextvec.rollout.threshold import TOLERATED

PEEK = 1_000  # requests between two tests
MINUTE = 60.0
P95 = 0.95
Z_BOUND = 2.128  # one-sided 5 % over three figures


def other_rules(cohort: Cohort) -> dict[str, Ends]:
    """How the rollouts of a cohort end by each rule, by its name."""
    return p95_per_minute(cohort) | {"z-tests, repeated": repeated_z_test(cohort)}


def _weights(cohort: Cohort) -> Float64[np.ndarray, " N"]:
    """The weight of every request on a fixed schedule: 5, 10, 25 and 50 % for a quarter of the time each."""
    time = cohort.stable.time
    quarter = np.minimum(4 * (time - time[0]) / max(time[-1] - time[0], 1e-9), 3).astype(np.int64)
    return np.array([5.0, 10.0, 25.0, 50.0])[quarter]


def _assigned(cohort: Cohort, rows: Int64[np.ndarray, " n"], weights: Float64[np.ndarray, " N"]) -> np.ndarray:
    return cohort.assigned(cohort.bucket[:, cohort.stable.session[rows]], weights[rows])


def p95_per_minute(cohort: Cohort) -> dict[str, Ends]:
    """Roll back when P95(canary) is above 1.2 x P95(stable) in a minute: in the first such minute, or in the fourth."""
    weights, minute = _weights(cohort), (cohort.stable.time // MINUTE).astype(np.int64)
    edges = np.append(np.flatnonzero(np.diff(minute, prepend=minute[0] - 1)), len(minute))
    failures = np.zeros(len(cohort.bucket), np.int64)
    ends = {tolerated: np.full(len(cohort.bucket), -1) for tolerated in (0, 3)}
    for begin, end in pairwise(edges):
        rows = np.arange(begin, end)
        arms = _assigned(cohort, rows, weights)
        failures += p95(cohort.canary.latency[rows], arms) > TOLERATED * p95(cohort.stable.latency[rows], ~arms)
        for tolerated, found in ends.items():
            found[(failures > tolerated) & (found < 0)] = end
    promoted = np.zeros(len(cohort.bucket), bool)
    return {f"P95 per minute, {n} tolerated": Ends(found, np.full(len(found), -1), promoted) for n, found in ends.items()}


def p95(latency: Float64[np.ndarray, " n"], chosen: np.ndarray) -> np.ndarray:
    """The 95th percentile of the chosen values of each row, by nearest rank; NaN for a row without any."""
    order = np.argsort(latency)
    below = np.cumsum(chosen[:, order], axis=1, dtype=np.int32)
    rank = np.ceil(P95 * below[:, -1])
    place = (below >= rank[:, None]).argmax(1)
    return np.where(below[:, -1] > 0, latency[order][place], np.nan)


def repeated_z_test(cohort: Cohort) -> Ends:
    """One-sided z-tests of failures, log latency (1.2 x tolerated) and misses, repeated every 1,000 requests."""
    weights, count = _weights(cohort), len(cohort.bucket)
    figures = [_figures(arm) for arm in (cohort.stable, cohort.canary)]
    sums = np.zeros((2, count, 3, 3))  # arm, rollout, figure, (n, sum, sum of squares)
    ends = np.full(count, -1)
    for begin in range(0, len(weights), PEEK):
        rows = np.arange(begin, min(begin + PEEK, len(weights)))
        arms = _assigned(cohort, rows, weights)
        for arm, took in enumerate((~arms, arms)):
            sums[arm] += (took.astype(np.float64) @ figures[arm][rows].reshape(len(rows), -1)).reshape(count, 3, 3)
        ends[(ends < 0) & (_z(sums) > Z_BOUND).any(1)] = rows[-1] + 1
    return Ends(ends, np.full(count, -1), np.zeros(count, bool))


def _figures(arm: Traffic) -> Float64[np.ndarray, "N 3 3"]:
    values = np.stack([arm.failed.astype(np.float64), np.log(arm.latency), (arm.hit == 0).astype(np.float64)], 1)
    present = np.stack([np.ones(len(arm)), np.ones(len(arm)), (arm.hit >= 0).astype(np.float64)], 1)
    return np.stack([present, values * present, values**2 * present], -1)


def _z(sums: Float64[np.ndarray, "2 A 3 3"]) -> Float64[np.ndarray, "A 3"]:
    n = np.maximum(sums[..., 0], 1)
    mean = sums[..., 1] / n
    error = np.sqrt((np.maximum(sums[..., 2] / n - mean**2, 0) / n).sum(0))
    return (mean[1] - mean[0] - np.array([0, math.log(TOLERATED), 0])) / np.maximum(error, 1e-12)
