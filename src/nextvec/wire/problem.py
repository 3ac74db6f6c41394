"""Problem bodies (RFC 9457)."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from nextvec.wire.fields import Body, Incarnation


class Problem(Body, frozen=True):
    """Why a request was refused, in one line."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    request: Annotated[str, Meta(description="Identifies the request in the server's log.")]
    seq: Annotated[int, Meta(ge=0, description="Appends of the session, with 409, 413, 503 and 504.")] | UnsetType = UNSET
    length: Annotated[int, Meta(ge=0, description="Vectors of the session so far, with 409, 413, 503 and 504.")] | UnsetType = (
        UNSET
    )
    incarnation: (
        Annotated[Incarnation, Meta(description="Of the session that has this name, with 409, 503 and 504.")] | UnsetType
    ) = UNSET
    applied: Annotated[bool, Meta(description="Whether this append was written, with 503 and 504.")] | UnsetType = UNSET
    fits: (
        Annotated[int, Meta(ge=0, description="Characters that can be encoded in time, where a text is too long.")] | UnsetType
    ) = UNSET
