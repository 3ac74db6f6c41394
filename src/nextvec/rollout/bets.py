"""Log gains of bets on single outcomes.

Let ``w`` be the canary's share when a unit was assigned, and ``rho`` the canary's rate of bad units divided by the stable
arm's. A bad unit belongs to the canary with probability ``w rho / (w rho + 1 - w)``. The base rate cancels out, so an
incident that affects both arms is no evidence. While ``rho <= 1 + d``, this probability is at most ``theta``, its value at
``1 + d``.

A bet at ``r`` times the odds of ``theta`` multiplies its stake by ``r / (theta r + 1 - theta)`` if the unit is the canary's,
and by ``1 / (theta r + 1 - theta)`` if it is not. For ``r > 1`` the expected factor is at most 1 under ``rho <= 1 + d``, so a
large capital is evidence that the canary is worse. For ``r < 1`` the same holds under ``rho >= 1 + d``, so it is evidence for
OK. Sources: Lindon, Sanden and Shirikian 2022 (canaries); Waudby-Smith and Ramdas 2023 (betting).
"""

# Axes: N pairs, R bets.

from functools import lru_cache

import numpy as np
from jaxtyping import Float64

RATIOS = (1.05, 1.15, 1.3, 1.6, 2.0, 3.0, 5.0, 10.0, 30.0)
INVERSE = tuple(1 / ratio for ratio in RATIOS)


@lru_cache(maxsize=4096)
def attribution(weight: float, tolerated: float, ratios: tuple[float, ...]) -> Float64[np.ndarray, "2 R"]:
    """Log gain of each bet from one bad unit: row 0 if it is the stable arm's, row 1 if it is the canary's.

    Args:
        weight: of the canary, in percent.
        tolerated: ``d`` of the hypothesis ``rho <= 1 + d`` (or ``>=``, for ratios below 1).
    """
    harmed = weight * (1 + tolerated)
    return gains_at(harmed / (harmed + 100 - weight), ratios)


def gains_at(theta: float, ratios: tuple[float, ...]) -> Float64[np.ndarray, "2 R"]:
    """Log gains of bets at ``ratios`` times the odds of ``theta``: row 0 if the outcome did not happen, row 1 if it did."""
    ratio = np.asarray(ratios, np.float64)
    lost = -np.log1p(theta * (ratio - 1))
    return np.stack([lost, lost + np.log(ratio)])


def pair_gains(shift: Float64[np.ndarray, " N"], points: float, sign: float) -> Float64[np.ndarray, "N R"]:
    """Log gains of bets on mirrored pairs with shifts ``x`` between -1 and 1.

    ``sign = 1`` bets against "the mean shift is at most ``points``", -1 against "at least". A stake of ``lambda`` grows by
    ``1 + lambda sign (x - points)`` (Waudby-Smith and Ramdas 2023). The bet assumes only the bounds of ``x``. For units of one
    request and ``points = 0`` it is a sequential McNemar test. The mean shift has the unit in which the margin is declared
    (points), for sessions of every length.
    """
    ratio = np.asarray(RATIOS, np.float64)
    stake = (ratio - 1) / (ratio + 1) / (1 + points)
    return np.log1p(stake * sign * (shift[:, None] - points))
