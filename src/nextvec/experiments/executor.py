"""Executors: train many runs, and yield what happens in the order in which it happens."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, Protocol, runtime_checkable

from nextvec.bank import Bank
from nextvec.errors import NextvecError, RunError
from nextvec.runs import TrainSettings
from nextvec.training import Event, begin, train

CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Task:
    """One run to train: its folder, and the recipe and settings that it is trained with."""

    path: Path
    recipe: str
    settings: TrainSettings


@dataclass(frozen=True)
class TaskStarted:
    """A worker has begun to train the run, or to resume it."""

    task: Task


@dataclass(frozen=True)
class TaskProgressed:
    """The training of the run yielded an event."""

    task: Task
    event: Event


@dataclass(frozen=True)
class TaskFinished:
    """The training of the run ended."""

    task: Task


@dataclass(frozen=True)
class TaskFailed:
    """The run could not be trained to its end."""

    task: Task
    error: NextvecError


TaskEvent = TaskStarted | TaskProgressed | TaskFinished | TaskFailed


@runtime_checkable
class Executor(Protocol):
    """Trains runs: in this process, in others, or on other machines."""

    def execute(self, tasks: Sequence[Task], bank: Path) -> Generator[TaskEvent]:
        """Train every task on the bank, and yield what happens in the order in which it happens.

        Every task ends with one :class:`TaskFinished` or :class:`TaskFailed`. A
        task that fails stops no other. A run that was trained in part is
        resumed. Closing the generator ends the trainings that have not ended;
        the same call resumes them.

        Args:
            bank: folder of the bank, readable by every worker.
        """
        ...


class LocalProcesses:
    """Trains runs in processes of this machine.

    Args:
        jobs: processes at a time, at least 1.
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = max(1, jobs)

    def execute(self, tasks: Sequence[Task], bank: Path) -> Generator[TaskEvent]:
        """As :meth:`Executor.execute`; a task whose process dies has failed, and another process takes the next task."""
        if not tasks:
            return
        events: SimpleQueue[TaskEvent | BaseException | None] = SimpleQueue()
        stopped, stop = CONTEXT.Pipe(duplex=False)
        pool = _Pool(min(self.jobs, len(tasks)), tasks, bank, events, stopped)
        # A thread takes the messages of the workers, so that no worker waits while the caller handles an event.
        thread = threading.Thread(target=pool.run, daemon=True)
        thread.start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            stop.close()
            thread.join()


Message = Event | NextvecError | Literal["started", "finished"]


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    task: Task


class _Pool:
    """The workers of one call: gives each a task at a time, and replaces those that die."""

    def __init__(
        self,
        size: int,
        tasks: Sequence[Task],
        bank: Path,
        events: "SimpleQueue[TaskEvent | BaseException | None]",
        stopped: Connection,
    ) -> None:
        self.size, self.waiting, self.bank, self.events, self.stopped = size, deque(tasks), bank, events, stopped
        self.workers: dict[Connection, _Worker] = {}

    def run(self) -> None:
        """Work until every task has ended or the caller stops; ``None`` is the last event."""
        try:
            for _ in range(self.size):
                self._start()
            while self.workers:
                for ready in wait([*self.workers, self.stopped]):
                    if ready is self.stopped:
                        return
                    assert isinstance(ready, Connection)
                    self._receive(self.workers[ready])
        except BaseException as error:  # raised by the caller: a thread cannot raise to it
            self.events.put(error)
        finally:
            for worker in self.workers.values():
                worker.process.terminate()
                worker.process.join()
            self.events.put(None)

    def _start(self) -> None:
        """Start a worker on the next task."""
        connection, other = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_work, args=(other, self.bank))
        process.start()
        other.close()  # so that the end of the process ends the connection
        worker = _Worker(process, connection, self.waiting.popleft())
        self.workers[connection] = worker
        self._send(worker, worker.task)

    def _receive(self, worker: _Worker) -> None:
        try:
            message: Message = worker.connection.recv()
        except (EOFError, OSError):
            self._dead(worker)
            return
        if message == "started":
            self.events.put(TaskStarted(worker.task))
        elif message == "finished":
            self.events.put(TaskFinished(worker.task))
            self._next(worker)
        elif isinstance(message, NextvecError):
            self.events.put(TaskFailed(worker.task, message))
            self._next(worker)
        else:
            self.events.put(TaskProgressed(worker.task, message))

    def _next(self, worker: _Worker) -> None:
        """Give a worker the next task; without one it ends."""
        if self.waiting:
            worker.task = self.waiting.popleft()
            self._send(worker, worker.task)
            return
        del self.workers[worker.connection]
        self._send(worker, None)
        worker.process.join()

    def _send(self, worker: _Worker, task: Task | None) -> None:
        with suppress(OSError):  # a dead process, which the next receipt finds
            worker.connection.send(task)

    def _dead(self, worker: _Worker) -> None:
        del self.workers[worker.connection]
        worker.process.join()
        self.events.put(TaskFailed(worker.task, RunError(_cause(worker.process.exitcode or 0))))
        if self.waiting:
            self._start()


def _cause(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"its training process was killed by {name} (out of memory?); the same command resumes it"
    return f"its training process ended with exit code {code}, see its messages above; the same command resumes it"


def _work(connection: Connection, path: Path) -> None:
    """Train tasks as they come, until there is none."""
    _die_with_parent()
    bank: Bank | None = None
    while (task := connection.recv()) is not None:
        try:
            bank = bank or Bank.open(path)
            run = begin(task.path, task.recipe, task.settings, bank)
            connection.send("started")
            for event in train(run, bank):
                connection.send(event)
            connection.send("finished")
        except NextvecError as error:
            connection.send(error)


def _die_with_parent() -> None:
    """End with the parent: a worker that trains on would hold its run against the next experiment."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
