"""HTTP: routes to the service and back. The guard is around all of it."""

# Axes: T vectors, D width.

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from nextvec.serving import openapi, wire
from nextvec.serving.bodies import Receive, Scope
from nextvec.serving.canary import Canary
from nextvec.serving.control import Control
from nextvec.serving.dashboard import FILES, page
from nextvec.serving.guard import Access, Guard, Log, Send
from nextvec.serving.isolated import EndedError, EngineProcess
from nextvec.serving.metrics import CONTENT_TYPE
from nextvec.serving.overview import Overview, unready
from nextvec.serving.service import Answer, Asking, Service
from nextvec.serving.wire import RefusedError, Vectors

K = 10
PIECE = 256 << 10  # bytes of a large answer that are handed to the connection at a time
LISTED, MOST_LISTED = 100, 1_000  # sessions on a page
T = TypeVar("T")
Handle = Callable[[Request], Awaitable[Response]]


class _Endpoint:
    """The handlers of one path as plain ASGI: Starlette's own wrapping does again what the guard does, at ten times the cost.

    A request that carries what its operation does not read is refused: it was meant for another one.
    """

    def __init__(self, handlers: Mapping[str, Handle], inputs: Mapping[str, openapi.Inputs]) -> None:
        self._handlers, self._inputs = handlers, inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        handle = self._handlers[method]
        scope["endpoint_name"] = handle.__name__
        request = Request(scope, receive)
        _check_inputs(request, self._inputs[method])
        response = await handle(request)
        await response(scope, receive, send)


def _check_inputs(request: Request, inputs: openapi.Inputs) -> None:
    """
    Raises:
        RefusedError: 400 a body or a query parameter that the operation does not read, or a parameter given twice.
    """
    if request.state.length and not inputs.body:
        raise RefusedError(400, f"{request.method} reads no body here; send none")
    if not request.scope["query_string"]:
        return
    names = [name for name, _ in request.query_params.multi_items()]
    known = ", ".join(inputs.query) or "none"
    for name in names:
        if name not in inputs.query:
            raise RefusedError(400, f"there is no query parameter {name[:40]!r} here; known: {known}")
        if names.count(name) > 1:
            raise RefusedError(400, f"query parameter {name!r} is given more than once")


class _Pieces(Response):
    """A large body, sent as the client takes it: until the last piece the request is not over, and its bytes count as held."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for first in range(0, max(len(self.body), 1), PIECE):
            more = first + PIECE < len(self.body)
            await send({"type": "http.response.body", "body": self.body[first : first + PIECE], "more_body": more})


class Handlers:
    """One method for each operation. ``root`` is the path under which a proxy shows the server, empty without one."""

    def __init__(self, service: Service, canary: Canary | None = None, root: str = "") -> None:
        self.service, self.control, self.root = service, Control(canary), root
        self._document = orjson.dumps(openapi.document(service.dim, root))
        self.whole = Overview(service, canary.status if canary is not None else lambda: None)

    def routes(self) -> list[Route]:
        """Every path with all its methods, as :mod:`nextvec.serving.openapi` documents it."""
        session = "/v1/sessions/{session}"
        table: list[tuple[str, str, Handle]] = [
            ("GET", "/v1/sessions", self.sessions),
            ("PUT", session, self.open),
            ("GET", session, self.describe),
            ("DELETE", session, self.delete),
            ("POST", f"{session}/append", self.append),
            ("POST", f"{session}/predict", self.predict),
            ("GET", f"{session}/snapshot", self.snapshot),
            ("PUT", f"{session}/snapshot", self.restore),
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
            *(("GET", path, page(path, self.root)) for path in FILES),
        ]
        inputs = openapi.inputs()
        paths: dict[str, dict[str, Handle]] = {}
        for method, path, handle in table:
            paths.setdefault(path, {})[method] = handle
        return [Route(path, _Endpoint(handlers, inputs[path]), methods=list(handlers)) for path, handlers in paths.items()]

    async def open(self, request: Request) -> Response:
        name = wire.named(request.path_params["session"])
        made = await self.service.open(name, self._deadline(request))
        return _json(self.service.describe(name), 201 if made else 200)

    async def sessions(self, request: Request) -> Response:
        limit = wire.whole(request.query_params.get("limit"), "limit", 1, MOST_LISTED, LISTED)
        after = request.query_params.get("after")
        listed, following = await self.service.page("" if after is None else wire.named(after, "after"), limit)
        return _json({"sessions": listed, "count": len(self.service.contexts), "next": following})

    async def describe(self, request: Request) -> Response:
        return _json(self.service.describe(wire.named(request.path_params["session"])))

    async def delete(self, request: Request) -> Response:
        name = wire.named(request.path_params["session"])
        if not await self.service.delete(name, self._deadline(request)):
            raise RefusedError(404, "there is no such session")
        return Response(status_code=204)

    async def append(self, request: Request) -> Response:
        deadline = self._deadline(request)
        name = wire.named(request.path_params["session"])
        query = request.query_params
        seq = wire.whole(query.get("seq"), "seq", 1, 2**62, 0) or None
        k = wire.whole(query.get("k"), "k", 0, wire.MOST_K, K)
        incarnation = wire.incarnation(query.get("incarnation"))
        self.service.describe(name)  # 404 before a text is encoded
        with self.service.standing(name):
            vectors = await self._vectors(request, deadline)
        asked = self.service.append(name, vectors, seq, k, _asking(request, name), deadline, incarnation)
        return _answered(request, await self._unless_gone(request, asked))

    async def predict(self, request: Request) -> Response:
        deadline = self._deadline(request)
        name = wire.named(request.path_params["session"])
        asked = self.service.predict(name, _k(request), _asking(request, name), deadline)
        return _answered(request, await self._unless_gone(request, asked))

    async def snapshot(self, request: Request) -> Response:
        name, deadline = wire.named(request.path_params["session"]), self._deadline(request)
        request.state.held.hold(int(self.service.describe(name)["bytes"]))  # about; before it takes memory
        saved = await self.service.saved(name, deadline)
        request.state.held.hold(len(saved))
        return _Pieces(saved, media_type=wire.OCTETS)

    async def restore(self, request: Request) -> Response:
        name, deadline = wire.named(request.path_params["session"]), self._deadline(request)
        kind = request.headers.get("content-type", wire.OCTETS).partition(";")[0].strip().lower()
        if kind != wire.OCTETS:
            raise RefusedError(415, f"content-type must be {wire.OCTETS}")
        made, restored = await self.service.restore(name, await request.body(), deadline)
        state = "restored" if restored else "rebuilt"
        return _json({**self.service.describe(name), "state": state}, 201 if made else 200)

    async def once(self, request: Request) -> Response:
        deadline, k = self._deadline(request), _k(request)
        vectors = await self._vectors(request, deadline)
        asked = self.service.once([vectors.rows], k, _asking(request, ""), deadline)
        return _answered(request, (await self._unless_gone(request, asked))[0])

    async def batch(self, request: Request) -> Response:
        deadline, k = self._deadline(request), _k(request)
        vectors = await self._vectors(request, deadline)
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
        return Response(self._document, media_type=wire.JSON)

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

    async def _vectors(self, request: Request, deadline: float) -> Vectors:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await request.body()
        if kind != wire.JSON:
            return wire.decode(body, kind, self.service.dim)
        if len(body) > wire.MOST_JSON:
            raise RefusedError(413, f"a JSON body has at most {wire.MOST_JSON} bytes; send vectors in binary")
        content = wire.parse(body)
        match list(content.items()):
            case [("vectors", values)]:
                return wire.from_json(values, self.service.dim)
            case [("rows", values)]:
                ids = wire.from_ids(values, self.service.candidates)
                return wire.from_rows(self.service.rows(ids), ids)
            case [("text", str(text))] if text.strip():
                asked = self.service.encode(text, deadline)
                return wire.from_rows(await self._unless_gone(request, asked, watched=True))
            case _:
                raise RefusedError(400, "the body must hold one of vectors, rows, or a text that is not empty")

    async def _unless_gone(self, request: Request, asked: Awaitable[T], watched: bool = False) -> T:
        """A client that leaves takes its request out of the queue, where others wait already or it is ``watched``."""
        if not self.service.waiting and not watched:
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
            if not answer.done():  # this handler was cancelled: nothing of the request may outlive the service
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)


def application(
    service: Service,
    log: Log,
    access: Access | None = None,
    canary: Canary | None = None,
    root: str = "",
) -> Guard:
    """Everything, inside the guard."""
    router = Router(Handlers(service, canary, root).routes(), redirect_slashes=False, default=_unknown)

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope["app"] = service  # by it starlette knows that somebody handles its exceptions
            await router(scope, receive, send)
        except HTTPException as error:
            allowed = ", ".join(sorted(str((error.headers or {}).get("Allow", "")).split(", ")))
            raise RefusedError(error.status_code, f"this path takes {allowed}", {"allow": allowed}) from None
        except EndedError:
            detail = "the model's process has ended and is being started again"
            raise RefusedError(503, detail, {"retry-after": "1"}) from None

    return Guard(inner, service.metrics, log, access, wire.most_body(service.dim))


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
