"""Descriptions of sessions."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from nextvec.wire.fields import Body, Incarnation, Name, Whole
from nextvec.wire.limits import MOST_LISTED

LISTED = 100  # sessions on a page where the request names no number


class SessionDescription(Body, frozen=True):
    """The state of a session: appends, vectors and bytes so far."""

    session: Name
    seq: Whole
    length: Whole
    bytes: Whole
    incarnation: Incarnation


class RestoredSession(SessionDescription, frozen=True):
    """A session that a snapshot has begun."""

    state: Annotated[
        Literal["restored", "rebuilt"],
        Meta(description="`rebuilt`: the snapshot is of another model; the next request reads the context again."),
    ]


class ListedSession(SessionDescription, frozen=True):
    """A session in a list."""

    idle: Annotated[float, Meta(ge=0, description="Seconds since its last request, or since the start of the server.")]


class SessionPage(Body, frozen=True):
    """Sessions in the order of their names."""

    sessions: list[ListedSession]
    count: Annotated[int, Meta(ge=0, description="All sessions of the server, on this page or not.")]
    next: Annotated[str | None, Meta(description="The `after` of the next page; null on the last page.")]


class PageQuery(Body, frozen=True):
    """Query parameters of the list of sessions."""

    limit: Annotated[int, Meta(ge=1, le=MOST_LISTED)] = LISTED
    after: Annotated[Name, Meta(description="The page begins after this name.")] | UnsetType = UNSET
