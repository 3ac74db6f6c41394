"""How many threads may compute at once."""

import os


def processors() -> int:
    """Number of processors that this process may use, where the system says it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
