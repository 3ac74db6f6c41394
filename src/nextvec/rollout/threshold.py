"""The running 95th percentile that defines a slow answer. The functions accept one rollout or an array of rollouts.

A value is slow when it is above the percentile of the stable arm's earlier units of the same stratum, or for the canary above
1.2 times it. So an equal canary is slow less often than stable, a canary that is 1.2 times slower exactly as often, and the
test needs no further tolerance.

The logarithm of the percentile rises by 0.95 of a step after a value above it and falls by 0.05 of a step otherwise. In the
long run 5 % of the values are above it, for every distribution and every drift (Robbins and Monro 1951; Gibbs and Candes
2021, adaptive conformal inference). The test's guarantee does not depend on the percentile, only its power.
"""

from dataclasses import dataclass
from math import inf, isfinite, log, nan
from typing import Any

import numpy as np

from nextvec.rollout.guardrails import CANARY

TOLERATED = 1.2  # the canary may be so many times slower
TAIL = 0.05  # share of values above the percentile
STEP = 0.02  # smallest step of the logarithm

LOG_TOLERATED = log(TOLERATED)


def is_slow(log_value: Any, log_percentile: Any, on_canary: Any) -> Any:
    """Whether a value is slow; a value that is not a number is. All arguments may be arrays of one shape.

    Args:
        log_percentile: infinite before the first value, so that only NaN is slow.
    """
    return np.logical_not(log_value <= log_percentile + on_canary * LOG_TOLERATED)


def learn(log_percentile: Any, count: Any, log_value: Any) -> Any:
    """The logarithm of the percentile after one more value; ``count`` values came before. Arguments may be arrays."""
    step = np.maximum(STEP, 1 / np.sqrt(np.maximum(count, 1)))
    moved = log_percentile + step * ((log_value > log_percentile) - TAIL)
    return np.where(np.equal(count, 0), log_value, moved)


def log_of(value: float) -> float:
    """The natural logarithm of a duration; -inf at 0 and below, NaN of NaN."""
    return log(value) if value > 0 else nan if value != value else -inf


@dataclass(frozen=True)
class Threshold:
    """The percentile of one stratum in one rollout.

    Attributes:
        log_percentile: in the unit of the values; infinite while ``count`` is 0.
        count: values that it has learned from.
    """

    log_percentile: float = inf
    count: int = 0

    def after(self, value: float) -> "Threshold":
        """The threshold after one more value of the stable arm. Values that are not positive numbers are ignored."""
        if not (isfinite(value) and value > 0):
            return self
        return Threshold(float(learn(self.log_percentile, self.count, log(value))), self.count + 1)

    def is_slow(self, value: float, arm: str) -> bool:
        """Whether a value of an arm is slow; a value that is not a number is."""
        return bool(is_slow(log_of(value), self.log_percentile, arm == CANARY))
