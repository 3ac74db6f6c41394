"""Types of single values that several bodies and parameters share."""

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from nextvec.wire.limits import MOST_DEADLINE_MS, MOST_K

NAME = "^[A-Za-z0-9_-]{1,64}$"
INCARNATION = "^[0-9a-f]{16}$"
_NAME = re.compile(NAME[1:-1])  # with fullmatch, because $ would allow a newline at the end
K = 10  # vectors of a prediction where the request names no number

Name = Annotated[str, Meta(pattern=NAME)]
Whole = Annotated[int, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Incarnation = Annotated[
    str,
    Meta(pattern=INCARNATION, description="Drawn when a session begins. A session that is deleted and made again has another."),
]
Limit = Annotated[int, Meta(ge=1, le=MOST_K)]
DeadlineMs = Annotated[float, Meta(ge=1, le=MOST_DEADLINE_MS)]
ArmName = Literal["stable", "canary"]


class Body(Struct, frozen=True, forbid_unknown_fields=True):
    """A JSON object whose fields are all declared; any other field is an error."""


def is_name(text: str) -> bool:
    """Whether ``text`` can name a session, a model or a rollout: 1 to 64 of A-Z a-z 0-9 _ -"""
    return _NAME.fullmatch(text) is not None
