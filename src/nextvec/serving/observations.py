"""What a server reports of its answers: to a rollout, and to a recording."""

from dataclasses import dataclass
from typing import Literal

from nextvec.routing import Arm

Stream = Literal["assign", "fail", "slow", "miss", "unlabelled"]


@dataclass(frozen=True)
class Observation:
    """The outcome of one request that was randomly assigned to an arm. The rollout decides whether it counts.

    Attributes:
        stream: ``assign``, ``fail`` and ``slow`` once a request, ``miss`` once a label, ``unlabelled`` once a prediction.
        weight: of the canary, in percent, when the arm was chosen.
        value: seconds for ``slow``; for other streams 1.0 is bad and 0.0 good.
        vectors: length of the context.
        lane: of the context; None on a server without lanes.
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
    """The outcomes of one mirrored request on both arms. The user got stable's answer; other attributes as above."""

    stream: Literal["fail", "miss"]
    session: str
    stable_bad: bool
    canary_bad: bool
    vectors: int
    lane: str | None = None
    cause: str = ""


@dataclass(frozen=True)
class Closed:
    """The end of a session."""

    session: str


SessionEvent = Observation | Pair | Closed


@dataclass(frozen=True)
class LabelledPrediction:
    """A prediction whose label has arrived, or can no longer arrive.

    Attributes:
        time: of the request, in seconds since 1970; used by replays, by no decision.
        vectors: length of the context.
        seconds: duration of the answer.
        failed: the model could not answer.
        hit: whether the next appended vector was among the predictions; None if nothing was appended.
    """

    session: str
    time: float
    vectors: int
    seconds: float
    failed: bool
    hit: bool | None
