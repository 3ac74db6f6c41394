"""What a request gives to the router, and what a server answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nextvec.inference import Expected
from nextvec.routing import Arm


@dataclass(frozen=True)
class RoutingRequest:
    """What the router knows of a request.

    Attributes:
        key: equal keys go to equal arms: the session's name.
        lane: that the request names; None for the lane of its context.
        headers: names in lower case.
        rights: of the caller's key.
    """

    key: str
    lane: str | None
    headers: Mapping[str, str]
    rights: frozenset[str]


@dataclass(frozen=True)
class ServedAnswer:
    """The candidates of one request, and who gave them.

    Attributes:
        expected: best first.
        model: name of the model that answered.
        reason: why that model answered.
        digest: of the model.
        seq, length: of the session's context; ``seq`` is None without a session.
        lane: of the context; None if no lanes are served.
    """

    expected: Sequence[Expected]
    arm: Arm
    model: str
    reason: str
    digest: str
    seq: int | None
    length: int
    lane: str | None = None
