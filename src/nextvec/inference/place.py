"""Where an engine computes: in the caller's process, or in one of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ended", "restarted", "refused"]
StatusListener = Callable[[Status, str], None]


@dataclass(frozen=True)
class ComputePlace:
    """Where an engine computes.

    Attributes:
        isolated: in a process of its own, which may end without the caller's.
        pid: of the process; None while an isolated engine has no process.
        last_end: how an isolated engine's process last ended, in words; empty before the first end.
    """

    isolated: bool
    pid: int | None
    last_end: str = ""
