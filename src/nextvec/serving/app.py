"""HTTP: routes to the service and back. The guard is around all of it."""

# Axes: T vectors, D width.

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson
import torch
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from nextvec.serving import openapi, wire
from nextvec.serving.canary import Canary
from nextvec.serving.control import Control
from nextvec.serving.dashboard import FILES, page
from nextvec.serving.guard import ON_LOOPBACK, App, Guard, Key, Log, Receive, Scope, Send, check_host
from nextvec.serving.isolated import Answering, EndedError, EngineProcess
from nextvec.serving.metrics import CONTENT_TYPE
from nextvec.serving.overview import Overview, unready
from nextvec.serving.protocol import protocol
from nextvec.serving.service import Answer, Asking, Limits, Service
from nextvec.serving.wire import RefusedError, Vectors

DRAIN_SECONDS, STOP_SECONDS = 2.0, 20.0
BACKLOG, CONNECTIONS = 1024, 4096
MOST_JSON = 1 << 20
SWITCH_SECONDS = 5e-4  # threads that rebuild give the interpreter back to the loop this often; Python's own is ten times it
K = 10
T = TypeVar("T")
Join = Callable[[Service, Callable[..., None]], Canary | None]


class _Endpoint:
    """A handler as plain ASGI: Starlette's own wrapping handles what the guard handles already, at a tenth of the cost."""

    def __init__(self, name: str, handle: Callable[[Request], Awaitable[Response]]) -> None:
        self.name, self.handle = name, handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["endpoint_name"] = self.name
        response = await self.handle(Request(scope, receive))
        await response(scope, receive, send)


class Handlers:
    """One method a route."""

    def __init__(self, service: Service, canary: Canary | None = None) -> None:
        self.service, self.control = service, Control(canary)
        self.whole = Overview(service, canary.told if canary is not None else lambda: None)

    def routes(self) -> list[Route]:
        """Every route, as :mod:`nextvec.serving.openapi` documents it."""
        session = "/v1/sessions/{session}"
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("PUT", session, self.open),
            ("GET", session, self.describe),
            ("DELETE", session, self.delete),
            ("POST", f"{session}/append", self.append),
            ("POST", f"{session}/predict", self.predict),
            ("GET", f"{session}/snapshot", self.snapshot),
            ("POST", "/v1/predict", self.once),
            ("POST", "/v1/predict/batch", self.batch),
            ("GET", "/v1/models", self.models),
            ("POST", "/v1/models/{model}/reload", self.reload),
            ("GET", "/v1/rollouts", self.control.rollouts),
            ("POST", "/v1/rollouts/{rollout}/{verb}", self.control.intervene),
            ("GET", "/v1/overview", self.overview),
            ("GET", "/healthz", self.healthy),
            ("GET", "/readyz", self.ready),
            ("GET", "/metrics", self.metrics),
            ("GET", "/openapi.json", self.document),
            *(("GET", path, page(path)) for path in FILES),
        ]
        return [Route(path, _Endpoint(handle.__name__, handle), methods=[method]) for method, path, handle in table]

    async def open(self, request: Request) -> Response:
        name = wire.named(request.path_params["session"])
        made = await self.service.open(name)
        return _json(self.service.describe(name), 201 if made else 200)

    async def describe(self, request: Request) -> Response:
        return _json(self.service.describe(wire.named(request.path_params["session"])))

    async def delete(self, request: Request) -> Response:
        if not await self.service.delete(wire.named(request.path_params["session"])):
            raise RefusedError(404, "there is no such session")
        return Response(status_code=204)

    async def append(self, request: Request) -> Response:
        deadline = self._deadline(request)
        name = wire.named(request.path_params["session"])
        query = request.query_params
        seq = wire.whole(query.get("seq"), "seq", 1, 2**62, 0) or None
        k = wire.whole(query.get("k"), "k", 0, wire.MOST_K, K)
        vectors = await self._vectors(request)
        asked = self.service.append(name, vectors, seq, k, _asking(request, name), deadline)
        return _answered(request, await self._unless_gone(request, asked))

    async def predict(self, request: Request) -> Response:
        deadline = self._deadline(request)
        name = wire.named(request.path_params["session"])
        asked = self.service.predict(name, _k(request), _asking(request, name), deadline)
        return _answered(request, await self._unless_gone(request, asked))

    async def snapshot(self, request: Request) -> Response:
        saved = await self.service.saved(wire.named(request.path_params["session"]))
        return Response(saved, media_type="application/octet-stream")

    async def once(self, request: Request) -> Response:
        deadline, k = self._deadline(request), _k(request)
        vectors = await self._vectors(request)
        asked = self.service.once([vectors.rows], k, _asking(request, ""), deadline)
        return _answered(request, (await self._unless_gone(request, asked))[0])

    async def batch(self, request: Request) -> Response:
        deadline, k = self._deadline(request), _k(request)
        vectors = await self._vectors(request)
        lengths = wire.lengths_of(request.query_params.get("lengths"), len(vectors.rows))
        contexts, start = [], 0
        for length in lengths:
            contexts.append(vectors.rows[start : start + length])
            start += length
        asked = self.service.once(contexts, k, _asking(request, ""), deadline)
        answers = await self._unless_gone(request, asked)
        return _json({"answers": [_content(request, answer) for answer in answers], "request": request.state.request})

    async def models(self, _: Request) -> Response:
        return _json({"models": [self._model(name) for name in self.service.models]})

    async def reload(self, request: Request) -> Response:
        model = await self.service.reload(wire.named(request.path_params["model"], "model"))
        return _json(self._model(model.name))

    async def overview(self, request: Request) -> Response:
        return _json(await self.whole.told(request.query_params.get("documents") in ("1", "true")))

    async def healthy(self, _: Request) -> Response:
        return _json({"status": "alive"})

    async def ready(self, _: Request) -> Response:
        trouble = unready(self.service)
        if trouble is not None:
            raise RefusedError(503, trouble)
        return _json({"status": "ready"})

    async def metrics(self, _: Request) -> Response:
        service = self.service
        service.metrics.queue.set(sum(len(model.line) for model in service.models.values()))
        service.metrics.sessions.set(len(service.contexts))
        service.metrics.states.set(service.states.bytes)
        service.metrics.log.set(service.contexts.bytes)
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def document(self, _: Request) -> Response:
        return _json(openapi.document(self.service.dim))

    def _model(self, name: str) -> dict[str, Any]:
        engine = self.service.models[name].engine
        stable = name == self.service.stable
        return {
            "name": name,
            "digest": engine.digest,
            "dim": engine.dim,
            "encoder": engine.encoder_fingerprint,
            "stable": stable,
            "process": engine.pid if isinstance(engine, EngineProcess) else os.getpid(),
        }

    def _deadline(self, request: Request) -> float:
        seconds = wire.milliseconds(request.headers.get("x-deadline-ms"), self.service.limits.deadline)
        return asyncio.get_running_loop().time() + seconds

    async def _vectors(self, request: Request) -> Vectors:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        if kind != wire.JSON:
            return wire.decode(body, kind, self.service.dim)
        if len(body) > MOST_JSON:
            raise RefusedError(413, f"a JSON body has at most {MOST_JSON} bytes; send vectors in binary")
        content = wire.parse(body)
        match list(content.items()):
            case [("vectors", values)]:
                return wire.from_json(values, self.service.dim)
            case [("rows", values)]:
                ids = wire.from_ids(values, self.service.candidates)
                return wire.from_rows(self.service.rows(ids), ids)
            case [("text", str(text))] if text.strip():
                return wire.from_rows(await self.service.encode(text))
            case _:
                raise RefusedError(400, "the body must hold one of vectors, rows, or a text that is not empty")

    async def _unless_gone(self, request: Request, asked: Awaitable[T]) -> T:
        """Where others wait already, a client that leaves takes its request out of the queue."""
        if not self.service.waiting:
            return await asked
        answer = asyncio.ensure_future(asked)
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)
                raise RefusedError(408, "the client has gone")
            return answer.result()
        finally:
            gone.cancel()


def application(
    service: Service,
    log: Log,
    keys: tuple[Key, ...] = (),
    hosts: frozenset[str] = ON_LOOPBACK,
    canary: Canary | None = None,
) -> Guard:
    """Everything, inside the guard."""
    router = Router(Handlers(service, canary).routes(), redirect_slashes=False, default=_unknown)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope["app"] = service  # by it starlette knows that somebody handles its exceptions
            await router(scope, receive, send)
        except HTTPException as error:
            raise RefusedError(error.status_code, "this path takes another method", dict(error.headers or {})) from None
        except EndedError:
            detail = "the model's process has ended and is being started again"
            raise RefusedError(503, detail, {"retry-after": "1"}) from None

    return Guard(inner, service.metrics, log, keys, hosts)


async def _unknown(*_: object) -> None:
    raise RefusedError(404, "there is no such path; see /openapi.json")


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _asking(request: Request, key: str) -> Asking:
    return Asking(key, request.headers.get("x-lane"), request.headers, request.state.rights)


def _k(request: Request) -> int:
    return wire.whole(request.query_params.get("k"), "k", 1, wire.MOST_K, K)


def _content(request: Request, answer: Answer) -> dict[str, Any]:
    texts, rows = (request.query_params.get(name) in ("1", "true") for name in ("text", "rows"))
    service: Service = request.app
    expected = [
        {
            "row": e.row,
            "score": e.score,
            "document": e.document,
            "count": e.count,
            **({"text": e.text} if texts else {}),
            **({"rows": service.holders(answer.model, e.row)} if rows else {}),
        }
        for e in answer.expected
    ]
    return {
        "expected": expected,
        "arm": answer.arm,
        "model": answer.model,
        "reason": answer.reason,
        "lane": answer.lane,
        "digest": answer.digest,
        "seq": answer.seq,
        "length": answer.length,
    }


def _answered(request: Request, answer: Answer) -> Response:
    return _json({**_content(request, answer), "request": request.state.request})


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type=wire.JSON)


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


__all__ = ["Place", "application", "serve"]
