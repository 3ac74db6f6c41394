"""Work for a client that may disconnect before its answer."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import Request

from nextvec.serving.refusal import RefusedError

T = TypeVar("T")


async def unless_disconnected(request: Request, pending: Awaitable[T]) -> T:
    """The result of ``pending``, which is cancelled if the client disconnects.

    Args:
        request: its body must be read.

    Raises:
        RefusedError: 408 the client has disconnected.
    """
    answer = asyncio.ensure_future(pending)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            raise RefusedError(408, "the client has disconnected")
        return answer.result()
    finally:
        gone.cancel()
        if not answer.done():  # the handler was cancelled: its work must end before the service closes
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
