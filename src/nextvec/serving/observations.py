"""What a server tells of its answers: to the judge of a rollout, and to a recording."""

from dataclasses import dataclass
from typing import Literal

from nextvec.routing import Arm

Stream = Literal["assign", "fail", "slow", "miss", "unlabelled"]


@dataclass(frozen=True)
class Seen:
    """What happened to one request whose arm a coin has chosen; the judge decides which of these count.

    Attributes:
        stream: ``assign``, ``fail`` and ``slow`` once a request, ``miss`` once a label, ``unlabelled`` once a prediction.
        weight: percent that went to the canary when the arm was chosen.
        value: seconds for ``slow``; for others 1.0 bad or 0.0 good.
        vectors: of the context.
        lane: of the context; None where no lanes are served.
        cause: of a failure, in words.
    """

    stream: Stream
    arm: Arm
    session: str
    weight: float
    value: float
    vectors: int
    lane: str | None = None
    cause: str = ""


@dataclass(frozen=True)
class Pair:
    """Both arms were asked the same, and stable's answer was given."""

    stream: Literal["fail", "miss"]
    session: str
    stable_bad: bool
    canary_bad: bool
    vectors: int
    lane: str | None = None
    cause: str = ""


@dataclass(frozen=True)
class Closed:
    """A session has ended."""

    session: str


Event = Seen | Pair | Closed


@dataclass(frozen=True)
class Settled:
    """A prediction whose truth has come, or never will.

    Attributes:
        time: when it was asked for, in seconds since 1970; for replays, nothing is decided by it.
        vectors: of the context.
        seconds: that it took.
        failed: the model on trial could not answer.
        hit: whether what was appended next was among the predicted; None where nothing was appended.
    """

    session: str
    time: float
    vectors: int
    seconds: float
    failed: bool
    hit: bool | None
