"""Refusals of requests, as problem bodies (RFC 9457)."""

from http import HTTPStatus
from typing import Any

import msgspec

from nextvec.errors import NextvecError
from nextvec.wire.problem import Problem


class RefusedError(NextvecError):
    """A request that the server answers with a problem body.

    Attributes:
        status: of the answer.
        members: further fields of :class:`nextvec.wire.problem.Problem`, such as the ``seq`` of a conflict.
        headers: of the answer, such as ``retry-after``.
    """

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.members, self.headers = status, members, headers or {}

    def body(self, request: str) -> bytes:
        """The problem as JSON. Its type is ``about:blank``: the title is the phrase of the status.

        Args:
            request: the id of the request.
        """
        title = HTTPStatus(self.status).phrase
        problem = Problem(
            type="about:blank", title=title, status=self.status, detail=str(self), request=request, **self.members
        )
        return msgspec.json.encode(problem)
