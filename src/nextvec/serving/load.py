"""The load of the last minutes, as the dashboard draws it."""

from dataclasses import astuple

import numpy as np

from nextvec.serving.recent import BINS, DECADE, SECONDS, Point, Recent, edges, percentiles
from nextvec.wire.overview import Histogram, Load, LoadFigures, LoadPoint

FINE, COARSE, FINE_FOR = 1, 5, 180  # seconds of a point while the server is younger than FINE_FOR, and later
MINUTE, HISTOGRAM_SECONDS, RATE_SECONDS = 60, 300, 10
BINS_OF_A_BAR = 4


def load_of(recent: Recent, waiting: int, budget: float) -> Load:
    """The last minutes as points, the last five as a histogram, the last one as figures.

    Args:
        waiting: requests in the queue.
        budget: seconds that a request may wait.
    """
    young = recent.uptime < FINE_FOR
    step, span = (FINE, FINE_FOR) if young else (COARSE, SECONDS)
    last, minute = recent.points(RATE_SECONDS, RATE_SECONDS)[0], recent.points(MINUTE, MINUTE)[0]
    seconds = max(1.0, min(recent.uptime, RATE_SECONDS))
    return Load(
        queue=waiting,
        budget=budget,
        rate=last.answers / seconds,
        minute=LoadFigures(*astuple(minute)),
        step=step,
        points=[_point(point) for point in recent.points(span, step)],
        histogram=_histogram(recent, budget),
    )


def _point(point: Point) -> LoadPoint:
    return LoadPoint(*astuple(point))


def _histogram(recent: Recent, budget: float) -> Histogram:
    counts = recent.histogram(HISTOGRAM_SECONDS)
    return Histogram(
        seconds=HISTOGRAM_SECONDS,
        edges=edges()[::BINS_OF_A_BAR].tolist(),
        counts=counts.reshape(BINS // BINS_OF_A_BAR, BINS_OF_A_BAR).sum(1).tolist(),
        within=within(counts, budget),
        p95=percentiles(counts, (0.95,))[0],
    )


def within(counts: np.ndarray, seconds: float) -> float | None:
    """The share of answers that took at most ``seconds``, to the precision of a bin; None without answers."""
    total = int(counts.sum())
    whole = int(np.searchsorted(edges(), seconds * 10 ** (0.5 / DECADE))) - 1
    return float(counts[: max(whole, 0)].sum() / total) if total else None
