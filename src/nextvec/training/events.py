"""What happens during training, as values."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stepped:
    """One update was made; ``loss`` is that of its targets."""

    update: int
    updates: int
    loss: float


@dataclass(frozen=True)
class Evaluated:
    """The model was evaluated on the valid exam.

    Attributes:
        update: updates made before.
        record: what the history keeps: update, loss, value and gradient norm of each of its terms (an auxiliary loss has
            no gradient norm), gradient norm, learning rate, temperature, negatives per target, Hit@1/5/10 and cosine on
            valid, variety of the predictions, alarms.
        best: whether no earlier validation was as good.
        seconds: of training so far, as :class:`nextvec.training.clock.Clock` counts them.
        wall: wall time of training so far, seconds.
    """

    update: int
    record: dict[str, Any]
    best: bool
    seconds: float
    wall: float


@dataclass(frozen=True)
class Alarmed:
    """A property of the training makes the figures of the run doubtful."""

    update: int
    alarm: str


@dataclass(frozen=True)
class Finished:
    """Training ended, and why."""

    update: int
    reason: str


Event = Stepped | Evaluated | Alarmed | Finished
