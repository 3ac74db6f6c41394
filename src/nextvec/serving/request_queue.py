"""The queue of one engine: all waiting requests form the next batch, and no request waits for a batch to fill."""

import asyncio
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from nextvec.inference import Expected, PredictionRequest
from nextvec.serving.answering import Answering, EndedError
from nextvec.serving.metrics import Metrics, span
from nextvec.serving.refusal import RefusedError
from nextvec.serving.round_robin import RoundRobinThread

BATCH = 64
CLOSE_SECONDS = 60.0  # the longest deadline of a request
SMOOTH = 0.05  # weight of the newest batch in the running mean of the cost of a request
LATEST, HIGH = 256, 0.95  # answers whose waits are remembered; the quantile that :attr:`RequestQueue.wait_p95` gives


@dataclass(eq=False)
class QueuedRequest(PredictionRequest):
    """A request in a queue. The queue alone uses the session's state until ``found`` is set.

    Attributes:
        deadline: on the loop's clock; a later answer is useless.
        begun: whether the engine has the request; until then the engine has not touched the session's state.
    """

    deadline: float
    begun: bool = False
    found: asyncio.Future[list[Expected]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    arrived: float = field(default_factory=time.monotonic)


class RequestQueue:
    """The requests that wait for one engine, and the task that answers them in batches. Used in a running loop.

    Inference runs in the loop's thread, because a hand-off to another thread costs more than a step. With ``in_thread`` it
    runs in a worker thread, so that an engine that hangs does not block the loop. While two arms are compared, both run in
    threads, so that their times are comparable. For an isolated engine, a worker thread waits.

    Attributes:
        in_thread: whether inference runs in a worker thread.
        seconds_per_request: running mean over batches.
        reader: the thread that reads long contexts; one thread, so that reading takes one core at most.
    """

    def __init__(self, engine: Answering, metrics: Metrics, model: str) -> None:
        self.engine, self.model = engine, model
        self.in_thread = engine.place.isolated
        self.seconds_per_request = 0.0
        self.reader = RoundRobinThread(f"reader-{model}")
        self._metrics = metrics
        self._waits: deque[float] = deque(maxlen=LATEST)
        self._waiting: deque[QueuedRequest] = deque()
        self._batch: list[QueuedRequest] = []
        self._users, self._closed = 0, False
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, f"engine-{model}")
        self._task = asyncio.get_running_loop().create_task(self._serve(), name=f"request queue {model}")

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def wait_p95(self) -> float:
        """Seconds from the request to the answer: the 95th percentile of the latest 256; 0 before the first."""
        waits = sorted(self._waits)
        return waits[int(HIGH * (len(waits) - 1))] if waits else 0.0

    def ask(self, request: QueuedRequest) -> asyncio.Future[list[Expected]]:
        """Queue a request; the future holds :class:`EndedError` if the queue is closed."""
        if self._closed:
            request.found.set_exception(_closed())
            return request.found
        self._waiting.append(request)
        self._arrived.set()
        return request.found

    @contextmanager
    def used(self) -> Generator[None]:
        """Keep the queue, its threads and its engine open until the block is left."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Stop when no user is left, or after ``patience`` seconds; requests that still wait get :class:`EndedError`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while (self._users or self._waiting) and loop.time() < until:
            await asyncio.sleep(0.01)
        self._closed = True
        self.reader.close(_closed())
        _fail((*self._waiting, *self._batch))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        ended = 0.0
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._waiting:
                batch = self._batch = self._next_batch()
                if batch:
                    began = time.monotonic()
                    await self._answer(batch)
                    # Counted from the end of the last batch, so that the cost includes reading and writing the requests.
                    spent = time.monotonic() - max(ended, min(began, batch[0].arrived))
                    self.seconds_per_request += SMOOTH * (spent / len(batch) - self.seconds_per_request)
                    ended = time.monotonic()
                await asyncio.sleep(0)  # the loop reads the requests that have arrived: they are the next batch

    def _next_batch(self) -> list[QueuedRequest]:
        now, batch = asyncio.get_running_loop().time(), []
        while self._waiting and len(batch) < BATCH:
            request = self._waiting.popleft()
            if request.found.done():  # its client has disconnected
                continue
            if request.deadline < now:
                request.found.set_exception(RefusedError(504, "no engine was free before the deadline"))
                continue
            request.begun = True
            batch.append(request)
        return batch

    async def _answer(self, batch: list[QueuedRequest]) -> None:
        began = time.perf_counter()
        with span("engine", sessions=len(batch), model=self.model):
            if self.in_thread:
                try:
                    answers = await asyncio.get_running_loop().run_in_executor(self._thread, self.engine.answers, batch)
                except asyncio.CancelledError:  # the queue is closed; do not wait for an engine that hangs
                    _fail(batch)
                    raise
            else:
                answers = self.engine.answers(batch)
        self._metrics.engine(self.model).observe(time.perf_counter() - began)
        self._metrics.batch.observe(len(batch))
        now = time.monotonic()
        self._waits.extend(now - request.arrived for request in batch)
        for request, answer in zip(batch, answers, strict=True):
            if request.found.done():
                continue
            if isinstance(answer, Exception):
                request.found.set_exception(answer)
            else:
                request.found.set_result(answer)


def _fail(requests: Iterable[QueuedRequest]) -> None:
    for request in requests:
        if not request.found.done():
            request.found.set_exception(_closed())


def _closed() -> EndedError:
    return EndedError("this model has been replaced or is being closed")
