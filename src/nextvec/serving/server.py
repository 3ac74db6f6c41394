"""The process that serves: where it listens, how it starts, and how it stops without dropping a request."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import uvicorn

from nextvec.serving.app import application
from nextvec.serving.canary import Canary
from nextvec.serving.guard import ON_LOOPBACK, App, Guard, Key, Log, check_host
from nextvec.serving.isolated import Answering
from nextvec.serving.protocol import protocol
from nextvec.serving.service import Limits, Service

DRAIN_SECONDS, STOP_SECONDS = 2.0, 20.0
BACKLOG, CONNECTIONS = 1024, 4096
SWITCH_SECONDS = 5e-4  # threads that rebuild give the interpreter back to the loop this often; Python's own is ten times it
Join = Callable[[Service, Callable[..., None]], Canary | None]


@dataclass(frozen=True)
class Place:
    """Where a server listens and who may ask.

    Attributes:
        port: 0 takes a free one.
        hosts: names under which a server without keys may be asked.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: tuple[Key, ...] = ()
    hosts: frozenset[str] = ON_LOOPBACK


class _Server(uvicorn.Server):
    """uvicorn that drains first: while stopping, answers close their connections, and nobody who asks is turned away."""

    def __init__(self, config: uvicorn.Config, service: Service, guard: Guard) -> None:
        super().__init__(config)
        self._service, self._guard = service, guard

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def main_loop(self) -> None:
        await super().main_loop()
        self._service.ready = False
        self._guard.draining = True
        loop = asyncio.get_running_loop()
        until = loop.time() + DRAIN_SECONDS
        while self.server_state.connections and loop.time() < until:
            await asyncio.sleep(0.02)


def serve(
    runs: Mapping[str, Path],
    open_run: Callable[[Path], Answering],
    sessions: Path,
    place: Place,
    limits: Limits,
    announce: Callable[[str], None],
    log_requests: bool = False,
    threads: int = 1,
    join: Join | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; returns once all that was asked is answered and the log is synced.

    Args:
        runs: by name; the first is the stable one.
        sessions: folder of the contexts.
        announce: told the address once it listens.
        threads: of one inference. One leaves the others to those who rebuild.
        join: given the service and the log before it listens: the part that it takes in rollouts.

    Raises:
        ServingError: a host others can reach without keys, sessions of another model, a folder in use.
    """
    check_host(place.host, place.keys)
    torch.set_num_threads(threads)
    sys.setswitchinterval(SWITCH_SECONDS)
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((place.host, place.port))
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(runs, open_run, sessions, place, limits, listener, announce, log_requests, join))


async def _serve(
    runs: Mapping[str, Path],
    open_run: Callable[[Path], Answering],
    sessions: Path,
    place: Place,
    limits: Limits,
    listener: socket.socket,
    announce: Callable[[str], None],
    log_requests: bool,
    join: Join | None,
) -> None:
    service = Service(runs, open_run, sessions, limits)
    log, canary = Log(service.metrics, log_requests), None
    service.tell = log.line
    try:
        if service.contexts.cut:
            log.line("torn", bytes=service.contexts.cut, detail="the end of the log was torn and has been put aside")
        canary = join(service, log.line) if join is not None else None
        guard = application(service, log, place.keys, place.hosts | {place.host}, canary)
        server = _Server(_config(guard, service), service, guard)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        host = f"[{place.host}]" if ":" in place.host else place.host
        announce(f"http://{host}:{listener.getsockname()[1]}")
        await server.serve(sockets=[listener])
    finally:
        if canary is not None:
            await canary.close()
        await service.close()
        log.close()


def _config(guard: App, service: Service) -> uvicorn.Config:
    return uvicorn.Config(
        guard,
        http=protocol(service.overloaded, service.metrics.refused),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(STOP_SECONDS),
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # not on every platform
        return asyncio.new_event_loop
    return uvloop.new_event_loop
