"""Checks of a canary before any request reaches it."""

import math
import time
from dataclasses import dataclass

import numpy as np

from nextvec.errors import NextvecError
from nextvec.inference import Engine
from nextvec.progress import Progress, silent

REPLAYS, NEAREST = 200, 10


@dataclass(frozen=True)
class Checked:
    """The result of the checks.

    Attributes:
        failures: in words; empty if all checks passed.
        replays: number of answers.
        p95: 95th percentile of their durations, in milliseconds; NaN without answers.
    """

    failures: tuple[str, ...]
    replays: int
    p95: float


def preflight(stable: Engine, canary: Engine, budget: float, replays: int = REPLAYS, progress: Progress = silent) -> Checked:
    """Check that a canary reads the same vectors and ranks the same candidates as stable, and answers soundly and fast enough.

    Args:
        budget: limit of the 95th percentile of its answers, in milliseconds.
        replays: number of answers, over the first documents of the bank.
    """
    failures: list[str] = []
    if canary.digest == stable.digest:
        failures.append("it is the stable model: the weights are the same")
    if (canary.dim, canary.encoder_fingerprint) != (stable.dim, stable.encoder_fingerprint):
        failures.append("it reads vectors of another encoder or width than the stable model")
    elif canary.bank.fingerprint != stable.bank.fingerprint:
        failures.append("it looks its predictions up in another bank than the stable model")
    times: list[float] = []
    try:
        times = _replayed(canary, replays, progress)
    except NextvecError as error:
        failures.append(f"it cannot answer: {error}")
    p95 = float(np.percentile(times, 95)) if times else math.nan
    if p95 > budget:
        failures.append(f"P95 of {len(times)} answers is {p95:.1f} ms, over the budget of {budget:g} ms")
    return Checked(tuple(failures), len(times), p95)


def _replayed(engine: Engine, replays: int, progress: Progress) -> list[float]:
    bank, times = engine.bank, list[float]()
    for m in range(bank.num_documents):
        session = engine.session()
        for row in np.asarray(bank.document(m), np.float32):
            began = time.perf_counter()
            session.push(row)
            expected = session.predict(NEAREST)
            times.append((time.perf_counter() - began) * 1e3)
            if not all(math.isfinite(e.score) for e in expected):
                raise NextvecError("a score is not finite")
            progress("replays", len(times), replays)
            if len(times) >= replays:
                return times
    return times
