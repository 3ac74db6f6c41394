"""One worker thread for short computations, and the number of requests that wait for any thread."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from typing import TypeVar

T = TypeVar("T")
_BACKGROUND = object()  # work without a request
_REQUEST: ContextVar[object | None] = ContextVar("request", default=None)  # shared by the parts of one request


class WorkerThread:
    """Runs labels, votes and lists. One thread, so that they take one core at most from the loop."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, "worker")
        self._waiting: Counter[object] = Counter()  # waits, by request

    async def run(self, call: Callable[[], T]) -> T:
        """The result of ``call``, from the thread."""
        return await self.counted(asyncio.get_running_loop().run_in_executor(self.thread, call))

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread, this one or another, and not for the loop."""
        return len(self._waiting)

    async def counted(self, waited: Awaitable[T]) -> T:
        """Wait for a thread. A request counts once, however many of its parts wait."""
        request = _REQUEST.get() or object()
        if request is _BACKGROUND:
            return await waited
        self._waiting[request] += 1
        try:
            return await waited
        finally:
            self._waiting[request] -= 1
            if not self._waiting[request]:
                del self._waiting[request]

    def close(self) -> None:
        """Drop the calls that have not begun."""
        self.thread.shutdown(wait=False, cancel_futures=True)


@contextmanager
def one_request() -> Generator[None]:
    """Count all parts of the block as one request."""
    token = _REQUEST.set(object())
    try:
        yield
    finally:
        _REQUEST.reset(token)


def background_context() -> Context:
    """A context for tasks that do not count as requests."""
    context = copy_context()
    context.run(_REQUEST.set, _BACKGROUND)
    return context
