"""Statistical power: how many units a harm needs, which harm a number of units detects, and how long a canary step must be.

A harm is the canary's rate of bad units divided by the stable arm's.
"""

# Axes: V values of a count, R bets.

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Float64

from nextvec.errors import ServingError
from nextvec.rollout.bets import RATIOS, attribution
from nextvec.rollout.evalues import LIVE_SHARE, log_mean

MOST_UNITS = 1e10  # a harm that needs more is reported as undetectable


def needed(harm: float, weight: float, base: float, alpha: float, tolerated: float = 0.0, strata: int = 1) -> tuple[int, int]:
    """Units of both arms after which ``harm`` is detected in 50, and in 90, of 100 rollouts at this weight.

    Args:
        harm: the same in all strata.
        weight: of the canary, in percent.
        base: share of bad units on the stable arm.
        alpha, tolerated: of the stream's :class:`~nextvec.rollout.guardrails.Guardrail`.
        strata: number of strata of the evidence.

    Raises:
        ServingError: no number of units suffices, or a rate or weight is outside its range.
    """
    _check_rates(weight, base, alpha)

    def units_for(power: float) -> int:
        return math.ceil(_least(lambda units: _detected(units, harm, weight, base, alpha, tolerated, strata) >= power, 1.0))

    if harm <= 1 + tolerated or _detected(MOST_UNITS, harm, weight, base, alpha, tolerated, strata) < 0.9:
        raise ServingError(f"a harm of {harm:g} cannot be detected where {1 + tolerated:g} is tolerated; declare a larger harm")
    return units_for(0.5), units_for(0.9)


@lru_cache(maxsize=1024)  # a status asks for every step and stream; only the counts of the present step change
def detectable(
    n_units: int,
    weight: float,
    base_rate: float,
    alpha: float,
    power: float = 0.9,
    tolerated: float = 0.0,
    strata: int = 1,
) -> float | None:
    """The smallest harm that ``n_units`` detect with probability ``power``; None if they detect no harm.

    The largest possible harm is ``1 / base_rate``: every unit is bad. A harm below the result may exist undetected. Other
    arguments as in :func:`needed`.

    Raises:
        ServingError: a rate, weight or number of units outside its range.
    """
    _check_rates(weight, base_rate, alpha)
    if n_units < 0:
        raise ServingError(f"{n_units} units; give 0 or more")

    def is_detected(harm: float) -> bool:
        return _detected(float(n_units), harm, weight, base_rate, alpha, tolerated, strata) >= power

    most = 1 / base_rate
    return _least(is_detected, 1 + tolerated, most) if most > 1 + tolerated and is_detected(most) else None


def _detected(units: float, harm: float, weight: float, base: float, alpha: float, tolerated: float, strata: int) -> float:
    """Probability that the e-value is past its bound after ``units`` units; slightly less than that it ever was.

    Bad units of the arms count as independent Poisson variables; the true variance of frequent ones is smaller.
    """
    stable, stable_chance = _poisson(units * (1 - weight / 100) * base)
    canary, canary_chance = _poisson(units * weight / 100 * min(1.0, base * harm))
    if_stable, if_canary = attribution(weight, tolerated, RATIOS)
    invested = LIVE_SHARE / 2 if strata == 1 else LIVE_SHARE / 4  # half of it with the first segment
    log_e = log_mean(stable[:, None, None] * if_stable + canary[:, None] * if_canary) + math.log(invested)
    return float(stable_chance @ (log_e >= -math.log(alpha)) @ canary_chance)


def _poisson(mean: float) -> tuple[Float64[np.ndarray, " V"], Float64[np.ndarray, " V"]]:
    """Values within seven standard deviations, thinned to a few hundred, and their probabilities."""
    reach = 7 * math.sqrt(mean) + 10
    low, high = max(0, math.floor(mean - reach)), math.ceil(mean + reach)
    values = np.arange(low, high + 1, 1 + (high - low) // 200, dtype=np.float64)
    logs = values * math.log(max(mean, 1e-300)) - np.array([math.lgamma(value + 1) for value in values])
    chances = np.exp(logs - logs.max())
    return values, chances / chances.sum()


def _least(holds: Callable[[float], bool], low: float, high: float | None = None) -> float:
    """The smallest value for which ``holds`` is true, to a thousandth. Without ``high``, doubling finds an upper bound."""
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
        raise ServingError(f"a weight of {weight:g} percent leaves one arm without traffic; give a value between 0 and 100")
    if not 0 < base <= 1 or not 0 < alpha < 1:
        raise ServingError(f"a base rate of {base:g} and alpha {alpha:g}; give shares between 0 and 1")
