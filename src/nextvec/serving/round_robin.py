"""Long jobs on one worker thread, one step of every job in turn, so that no job waits until another has ended."""

import asyncio
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]  # each ``yield`` ends a step; the return value is the result


@dataclass(frozen=True, eq=False)
class _Job:
    steps: Steps[Any]
    found: asyncio.Future[Any]


class RoundRobinThread:
    """Runs the steps of all jobs on one thread, round-robin by job. Made and used inside a running loop.

    Attributes:
        since: when the running step began, in seconds of the loop's clock; None while no step runs.
    """

    def __init__(self, name: str) -> None:
        self.since: float | None = None
        self._waiting: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._closed: Exception | None = None
        self._thread = ThreadPoolExecutor(1, name)
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=name)

    def run(self, steps: Steps[T]) -> asyncio.Future[T]:
        """Queue a job; the future holds its result. Cancelling the future ends the job before its next step."""
        found: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._closed is not None:
            found.set_exception(self._closed)
            return found
        self._waiting.append(_Job(steps, found))
        self._arrived.set()
        return found

    def close(self, error: Exception) -> None:
        """End every job with ``error``; the running step finishes, and its result is dropped."""
        self._closed = error
        self._task.cancel()
        while self._waiting:
            _fail(self._waiting.popleft(), error)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                job = self._waiting.popleft()
                if job.found.done():
                    job.steps.close()
                    continue
                await self._stepped(job)

    async def _stepped(self, job: _Job) -> None:
        loop = asyncio.get_running_loop()
        self.since = loop.time()
        try:
            ended, result = await loop.run_in_executor(self._thread, _step, job.steps)
        except asyncio.CancelledError:
            _fail(job, self._closed or RuntimeError("the thread was stopped"))
            raise
        except Exception as error:
            _fail(job, error)
        else:
            if not ended:
                self._waiting.append(job)
            elif not job.found.done():
                job.found.set_result(result)
        finally:
            self.since = None


def _step(steps: Steps[T]) -> tuple[bool, T | None]:
    """Whether the job has ended, and its result. Called in the worker thread."""
    try:
        next(steps)
    except StopIteration as done:
        return True, done.value
    return False, None


def _fail(job: _Job, error: Exception) -> None:
    if not job.found.done():
        job.found.set_exception(error)
