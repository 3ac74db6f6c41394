"""The process of an isolated engine: starts it, watches it, and starts it again when it has ended or hangs."""

import atexit
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from nextvec.errors import RunError
from nextvec.inference import Engine
from nextvec.inference.place import StatusListener
from nextvec.serving.answering import EndedError
from nextvec.serving.engine_child import serve
from nextvec.serving.engine_messages import MOST_BYTES, Json, error_from_json, pack, unpack

OPEN_SECONDS = 300.0  # to open the run; then the process counts as hung and is killed
WATCH_SECONDS = 0.25
# Seconds before a new start, doubled each time up to the longest; the first again after a process that lived SOUND_SECONDS.
FIRST_PAUSE, LONGEST_PAUSE, SOUND_SECONDS = 0.2, 30.0, 60.0


@dataclass
class Channel:
    """A connection to the process; the child answers each channel in a thread of its own.

    Attributes:
        patience: seconds for an answer; then the process counts as hung and is killed.
        since: when the present request was sent, on the monotonic clock.
    """

    patience: float
    connection: Connection | None = None
    since: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class EngineProcess:
    """A supervised process that serves one run.

    Attributes:
        facts: what the process said of its engine: digest, weights, context, path of the bank.
        life: number of the process, from 1; each start counts.
        last_end: how the process last ended, in words; empty before the first end.
        listener: called in a thread with a change of status and one line.

    Args:
        run: folder of the run.
        open_run: called in the child; must be picklable.

    Raises:
        NextvecError: the run cannot be opened; with the child's message.
    """

    def __init__(
        self, run: Path, open_run: Callable[[Path], Engine], channels: Sequence[Channel], listener: StatusListener
    ) -> None:
        self.facts: Json = {}
        self.life, self.last_end, self.listener = 0, "", listener
        self._run, self._open_run, self._channels = run, open_run, channels
        self._process: BaseProcess | None = None
        self._fault = "the engine's process has not started yet"
        self._started, self._closing = threading.Event(), threading.Event()
        self._refused: Exception | None = None
        # The kernel ends a child with the thread that started it (PR_SET_PDEATHSIG), so one thread makes all starts.
        self._supervisor = threading.Thread(target=self._supervise, name=f"supervisor {run.name}", daemon=True)
        self._supervisor.start()
        atexit.register(self.close)
        self._started.wait()
        if self._refused is not None:
            raise self._refused

    @property
    def fault(self) -> str | None:
        """Why it cannot be asked now; None if it can."""
        return None if self._channels[0].connection is not None else self._fault

    @property
    def pid(self) -> int | None:
        """Of the running process; None if there is none."""
        return self._process.pid if self.fault is None and self._process is not None else None

    def ask(self, channel: Channel, content: Json, payload: bytes = b"", life: int | None = None) -> tuple[Json, bytes]:
        """Send a request and wait for the reply.

        Args:
            life: of the process that holds the session's state; None for a request without a session.

        Raises:
            EndedError: there is no process, it ended during the request, or it is not the one with the state.
            NextvecError: the child's error.
        """
        with channel.lock:
            connection = channel.connection
            if connection is None:
                raise EndedError(self._fault)
            if life not in (None, self.life):
                raise EndedError("this state ended with the engine's process")
            channel.since = time.monotonic()
            try:
                connection.send_bytes(pack(content, payload))
                reply, data = unpack(connection.recv_bytes(MOST_BYTES))
            except (OSError, EOFError):
                raise EndedError("the engine's process ended during the request") from None
            finally:
                channel.since = None
        if "error" in reply:
            raise error_from_json(reply)
        return reply, data

    def close(self) -> None:
        """Kill the process and wait for its end; pending requests get :class:`EndedError`."""
        atexit.unregister(self.close)
        self._closing.set()
        self._supervisor.join(5.0)

    # In the supervisor's thread.

    def _supervise(self) -> None:
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._start()
            except Exception as error:
                if not self._started.is_set():
                    self._refused = error
                    self._started.set()
                    return
                self._fault = str(error)
                self.listener("refused", f"its process cannot be started again: {error}")
            else:
                if self._started.is_set():
                    self.listener("restarted", f"its process runs again, number {self.life}")
                self._started.set()
                self._watch()
            pause = FIRST_PAUSE if time.monotonic() - began > SOUND_SECONDS else min(LONGEST_PAUSE, 2 * pause)
            self._closing.wait(pause)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in self._channels]
        theirs = [its for _, its in pipes]
        given = (self._run, self._open_run, torch.get_num_threads(), theirs)
        process = context.Process(target=serve, args=given, name=f"engine {self._run.name}", daemon=True)
        process.start()
        for its in theirs:
            its.close()
        facts = self._first_reply(process, pipes[0][0])
        if "error" in facts:
            process.join()
            raise error_from_json(facts)
        if self.facts and facts != self.facts:
            process.kill()
            raise RunError(f"{self._run} holds another model than the one that was served; reload it")
        self.facts, self._process = facts, process
        self.life += 1
        for channel, (mine, _) in zip(self._channels, pipes, strict=True):
            channel.connection = mine

    def _first_reply(self, process: BaseProcess, front: Connection) -> Json:
        """The facts of the opened run, or the error.

        Raises:
            RunError: the process ended, or had to be killed, before it replied.
        """
        began, hung = time.monotonic(), False
        try:
            while not front.poll(WATCH_SECONDS):
                hung = hung or time.monotonic() - began > OPEN_SECONDS
                if hung or self._closing.is_set():
                    process.kill()
            return unpack(front.recv_bytes(MOST_BYTES))[0]
        except (OSError, EOFError):
            process.join()
            how = f"it took more than {OPEN_SECONDS:g} s" if hung else _how(process)
            raise RunError(f"{self._run}: the engine's process ended while it opened the run ({how})") from None

    def _watch(self) -> None:
        """Return when the process has ended: by itself, killed because it hung, or killed because the server closes."""
        process = self._process
        assert process is not None
        hung = 0.0  # seconds without an answer
        while not wait([process.sentinel], WATCH_SECONDS):
            now = time.monotonic()
            sent = [(channel, channel.since) for channel in self._channels]
            late = [channel.patience for channel, since in sent if since is not None and now - since > channel.patience]
            hung = hung or max(late, default=0.0)
            if hung or self._closing.is_set():
                process.kill()
        process.join()
        self.last_end = f"the process did not answer for {hung:g} s" if hung else f"the process was ended: {_how(process)}"
        self._fault = f"the engine's process has ended ({self.last_end}); it is being started again"
        for channel in self._channels:
            connection, channel.connection = channel.connection, None
            assert connection is not None
            with channel.lock:  # a pending request has seen the end of the stream by now
                connection.close()
        if not self._closing.is_set():
            self.listener("ended", self._fault)


def _how(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
