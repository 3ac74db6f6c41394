"""The server's process: it starts, serves, and stops without dropping a request."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn

from nextvec.serving.answering import Answering
from nextvec.serving.app import application
from nextvec.serving.canary import Canary
from nextvec.serving.guard import App, Guard
from nextvec.serving.limits import Limits
from nextvec.serving.listening import BACKLOG, ListenAddress, bound, listen
from nextvec.serving.log import Log
from nextvec.serving.protocol import IDLE_SECONDS, Guarded, Hooks, protocol
from nextvec.serving.service import Service

DRAIN_SECONDS, STOP_SECONDS = 2.0, 20.0
FRESH_SECONDS = 1.0  # that a stopping server waits for the first request of a new connection
SWITCH_SECONDS = 5e-4  # threads that rebuild release the interpreter to the loop this often; Python's default is 5 ms
Join = Callable[[Service, Callable[..., None]], Canary | None]


class _Server(uvicorn.Server):
    """uvicorn that drains before it stops.

    While it drains, it accepts connections and answers as before, and each answer closes its connection. Then it stops
    listening, accepts the connections that wait in the queue, and answers them, too. Silent connections are closed.
    """

    def __init__(self, config: uvicorn.Config, service: Service, guard: Guard, listener: socket.socket) -> None:
        super().__init__(config)
        self._service, self._guard = service, guard
        # Closing the last descriptor of a listening socket resets the connections that wait in its queue.
        self._listener = listener.dup()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def main_loop(self) -> None:
        await super().main_loop()
        self._service.drain()
        self._guard.draining = True
        await _until(lambda: not self.server_state.connections, DRAIN_SECONDS)
        await self._stop_listening()
        await _until(lambda: not any(isinstance(c, Guarded) and c.fresh for c in self.server_state.connections), FRESH_SECONDS)

    async def _stop_listening(self) -> None:
        for server in self.servers:
            server.close()
        accepted: list[socket.socket] = []
        with self._listener as listener:
            listener.setblocking(False)
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except OSError:  # the queue is empty, or a client has disconnected
                    break
        loop = asyncio.get_running_loop()
        for connection in accepted:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._connection, connection)

    def _connection(self) -> asyncio.Protocol:
        made: Any = self.config.http_protocol_class
        return made(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


async def _until(done: Callable[[], bool], seconds: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not done() and loop.time() < until:
        await asyncio.sleep(0.02)


class _Lines(logging.Handler):
    """Log records of libraries as lines of the server's log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        self._log.line("library", logger=record.name, level=record.levelname, message=record.getMessage(), trace=trace)


@contextmanager
def _library_lines(log: Log) -> Generator[None]:
    handler = _Lines(log)
    loggers = [logging.getLogger(name) for name in ("uvicorn", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True


def serve(
    runs: Mapping[str, Path],
    open_run: Callable[[Path], Answering],
    sessions: Path,
    place: ListenAddress,
    limits: Limits,
    announce: Callable[[str], None],
    log_requests: bool = False,
    threads: int = 1,
    join: Join | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; returns when all requests are answered and the log of contexts is synced.

    Args:
        runs: by name; the first is the stable one.
        sessions: folder of the contexts.
        announce: called with the address when the server listens.
        threads: of one inference. With one, the other cores are free for rebuilds.
        join: called with the service and the log before the server listens; returns its part in rollouts.

    Raises:
        ServingError: a host that others can reach, without keys; an address in use; sessions of another model; a folder in use.
    """
    torch.set_num_threads(threads)
    sys.setswitchinterval(SWITCH_SECONDS)
    with bound(place) as listener, asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(runs, open_run, sessions, place, limits, listener, announce, log_requests, join))


async def _serve(
    runs: Mapping[str, Path],
    open_run: Callable[[Path], Answering],
    sessions: Path,
    place: ListenAddress,
    limits: Limits,
    listener: socket.socket,
    announce: Callable[[str], None],
    log_requests: bool,
    join: Join | None,
) -> None:
    service = Service(runs, open_run, sessions, limits)
    log, canary = Log(service.metrics, log_requests), None
    service.listeners.log = log.line
    try:
        if service.contexts.log.cut:
            log.line(
                "torn",
                bytes=service.contexts.log.cut,
                detail="the last record of the log was incomplete; it was moved to a file beside the log",
            )
        canary = join(service, log.line) if join is not None else None
        guard = application(service, log, place.access, canary, place.root)
        listen(listener, place)
        server = _Server(_config(guard, service, log), service, guard, listener)
        announce(place.url(listener))
        with _library_lines(log):
            await server.serve(sockets=[listener])
    finally:
        if canary is not None:
            await canary.close()
        await service.close()
        log.close()


def _config(guard: App, service: Service, log: Log) -> uvicorn.Config:
    def refused(status: int, detail: str, request: str) -> None:
        service.metrics.requests("other", str(status)).inc()
        log.line("refused", request=request, status=status, detail=detail)

    return uvicorn.Config(
        guard,
        http=protocol(Hooks(service.overloaded, service.metrics.refused, refused)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(IDLE_SECONDS),
        timeout_graceful_shutdown=int(STOP_SECONDS),
    )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not on every platform
        return asyncio.new_event_loop
    return uvloop.new_event_loop
