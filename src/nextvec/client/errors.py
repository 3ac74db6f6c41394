"""Errors of the client, by what the server answered."""

from http.client import responses

import httpx
import msgspec

from nextvec.errors import NextvecError
from nextvec.wire.problem import Problem

MOST_DETAIL = 200  # characters of an answer that is not a problem


class ServerError(NextvecError):
    """The server refused a request.

    Attributes:
        status: of the answer; 0 if none came.
        problem: the whole problem (RFC 9457). A field that the server did not send is ``msgspec.UNSET``.
    """

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.status, self.problem = status, problem


class NotFoundError(ServerError):
    """There is no such session or model."""


class SeqConflictError(ServerError):
    """Another client has appended to this session; ``problem`` has its present ``seq`` and ``length``.

    The session takes them over, and the next append continues from there.
    """


class ReplacedError(SeqConflictError):
    """The session was deleted, and another one now has its name. Ask the client for the session again."""


class DeniedError(ServerError):
    """The server wants a key, or the key lacks a right."""


class OverloadedError(ServerError):
    """The server had no time in every try.

    Of an append, ``problem.applied`` says whether it was written; it is UNSET if that is not known.
    """


class UnreachableError(ServerError):
    """No answer came in any try."""


_KINDS: dict[int, type[ServerError]] = {
    401: DeniedError,
    403: DeniedError,
    404: NotFoundError,
    503: OverloadedError,
    504: OverloadedError,
}
_PROBLEM = msgspec.json.Decoder(Problem)


def check(response: httpx.Response) -> bytes:
    """The body of a successful answer.

    Raises:
        ServerError: the answer is a problem.
    """
    if response.is_success:
        return response.content
    problem = _problem(response)
    kind = _KINDS.get(response.status_code, ServerError)
    if response.status_code == 409 and problem.seq is not msgspec.UNSET:
        sent = response.request.url.params.get("incarnation")
        kind = ReplacedError if sent and problem.incarnation and problem.incarnation != sent else SeqConflictError
    raise kind(response.status_code, problem)


def problem_of(status: int, detail: str) -> Problem:
    """A problem that the server has not sent."""
    return Problem(type="about:blank", title=responses.get(status, ""), status=status, detail=detail, request="")


def _problem(response: httpx.Response) -> Problem:
    try:
        return _PROBLEM.decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a proxy answered
        return problem_of(response.status_code, response.text[:MOST_DETAIL])
