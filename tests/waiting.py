"""Waiting for what another process or thread does, without a verdict on how fast it does it."""

import time
from collections.abc import Callable

PATIENCE = 300.0  # seconds; a bound on what has hung, far above what a loaded machine needs


def until(what: Callable[[], object], seconds: float = PATIENCE, pause: float = 0.02) -> None:
    """Return as soon as ``what()`` is true.

    Raises:
        AssertionError: it did not become true; what an assertion inside ``what`` raises ends the waiting too.
    """
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"it did not happen within {seconds:.0f} s"
        time.sleep(pause)
