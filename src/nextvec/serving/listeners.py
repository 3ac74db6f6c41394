"""Functions that a service calls when something happens."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nextvec.serving.observations import LabelledPrediction, SessionEvent


def _ignore(*_: Any, **__: Any) -> None:
    pass


@dataclass
class Listeners:
    """Set by the parts of a server that observe the service; until then, nothing is called.

    Attributes:
        observe: gets what happened to requests and sessions, for a rollout's evidence.
        alarm: gets a reason to roll back that needs no statistics.
        log: writes a line of the server's log.
        record: gets every prediction with its label, during a rollout or not; None: nothing is recorded.
    """

    observe: Callable[[SessionEvent], None] = _ignore
    alarm: Callable[[str], None] = _ignore
    log: Callable[..., None] = _ignore
    record: Callable[[LabelledPrediction], None] | None = None
