"""What an engine's ``predict`` does when it is broken."""

import threading
from collections.abc import Callable
from typing import Any

RELEASED = threading.Event()  # ``hangs`` returns when this is set


def raises(*_: object) -> Any:
    raise RuntimeError("planted")


def hangs(*_: object) -> Any:
    RELEASED.wait()


def says_nan(sessions: list[Any], k: int) -> Any:
    from nextvec.inference.expected import Expected

    return [[Expected(0, float("nan"), "", None)] for _ in sessions]


FAULTS: dict[str, Callable[..., Any]] = {"raises": raises, "hangs": hangs, "says_nan": says_nan}
