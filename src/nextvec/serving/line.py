"""Requests waiting for one engine: whatever waits is one batch, and nothing waits for a batch to fill."""

import asyncio
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from nextvec.inference import Expected, Question
from nextvec.serving.isolated import Answering, EndedError, EngineProcess
from nextvec.serving.metrics import Metrics, span
from nextvec.serving.refusal import RefusedError
from nextvec.serving.turns import Turns

BATCH = 64
CLOSE_SECONDS = 60.0  # the longest deadline of a request
SMOOTH = 0.05  # weight of the newest batch in the running mean of what a request costs
LATEST, HIGH = 256, 0.95  # answers whose waits are remembered; the share of them that :attr:`Line.wait` covers


@dataclass(eq=False)
class Job(Question):
    """A question that somebody waits for; its session is the line's alone until ``found`` is set.

    Attributes:
        deadline: on the loop's clock, after which nobody wants the answer.
        begun: whether the engine has been given the job; until then it has not touched the job's session.
    """

    deadline: float
    begun: bool = False
    found: asyncio.Future[list[Expected]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    arrived: float = field(default_factory=time.monotonic)


class Line:
    """One engine's queue and the task that serves it.

    Inference runs in the loop's own thread: a hand-off to another costs more than a step. ``apart`` it runs in a thread
    of its own, so that an engine that hangs holds up nobody else; while two arms are compared, both run so, for their
    times to be comparable. For an engine in a process of its own a thread waits.
    """

    def __init__(self, engine: Answering, metrics: Metrics, model: str) -> None:
        self.engine, self.model = engine, model
        self.apart = isinstance(engine, EngineProcess)
        self.seconds = 0.0  # what a request costs, running mean over batches
        self._metrics = metrics
        self._waits: deque[float] = deque(maxlen=LATEST)
        self._waiting: deque[Job] = deque()
        self._jobs: list[Job] = []  # being answered
        self._users, self._closed = 0, False
        self._arrived = asyncio.Event()
        self.aside = Turns(f"aside-{model}")  # long contexts; one thread, so one core at most
        self._thread = ThreadPoolExecutor(1, f"engine-{model}")
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"line {model}")

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def wait(self) -> float:
        """Seconds from the question to the answer: the 95th percentile of the latest 256; 0 before the first."""
        waits = sorted(self._waits)
        return waits[int(HIGH * (len(waits) - 1))] if waits else 0.0

    def ask(self, job: Job) -> asyncio.Future[list[Expected]]:
        """The answer; :class:`EndedError` where the line is closed."""
        if self._closed:
            job.found.set_exception(_replaced())
            return job.found
        self._waiting.append(job)
        self._arrived.set()
        return job.found

    @contextmanager
    def used(self) -> Generator[None]:
        """Keep the line, its threads and its engine open until the block is left."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Stop once every user has left, or after ``patience`` seconds; what still waits then gets :class:`EndedError`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while (self._users or self._waiting) and loop.time() < until:
            await asyncio.sleep(0.01)
        self._closed = True
        self.aside.close(_replaced())
        for job in (*self._waiting, *self._jobs):
            if not job.found.done():
                job.found.set_exception(_replaced())
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        ended = 0.0
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                jobs = self._jobs = self._taken()
                if jobs:
                    began = time.monotonic()
                    await self._answer(jobs)
                    # From the end of the last batch, so that reading and writing requests is part of what one costs.
                    spent = time.monotonic() - max(ended, min(began, jobs[0].arrived))
                    self.seconds += SMOOTH * (spent / len(jobs) - self.seconds)
                    ended = time.monotonic()
                await asyncio.sleep(0)  # the loop reads what has come meanwhile: it is the next batch

    def _taken(self) -> list[Job]:
        now, jobs = asyncio.get_running_loop().time(), []
        while self._waiting and len(jobs) < BATCH:
            job = self._waiting.popleft()
            if job.found.done():  # its client has gone
                continue
            if job.deadline < now:
                job.found.set_exception(RefusedError(504, "no engine was free before the deadline"))
                continue
            job.begun = True
            jobs.append(job)
        return jobs

    async def _answer(self, jobs: list[Job]) -> None:
        began = time.perf_counter()
        with span("engine", sessions=len(jobs), model=self.model):
            if self.apart:
                try:
                    answers = await asyncio.get_running_loop().run_in_executor(self._thread, self.engine.answers, jobs)
                except asyncio.CancelledError:  # the line is closed; an engine that hangs is not waited for
                    for job in jobs:
                        if not job.found.done():
                            job.found.set_exception(_replaced())
                    raise
            else:
                answers = self.engine.answers(jobs)
        self._metrics.engine(self.model).observe(time.perf_counter() - began)
        self._metrics.batch.observe(len(jobs))
        now = time.monotonic()
        self._waits.extend(now - job.arrived for job in jobs)
        for job, answer in zip(jobs, answers, strict=True):
            if job.found.done():
                continue
            if isinstance(answer, Exception):
                job.found.set_exception(answer)
            else:
                job.found.set_result(answer)


def _replaced() -> EndedError:
    return EndedError("this model has been replaced or is being closed")
