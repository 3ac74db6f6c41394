"""Progress of long work: the work reports it, the caller decides how to show it."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a name of the work, the amount that is done, and the whole amount."""


def silent(what: str, done: int, total: int) -> None:
    """Show nothing."""
