"""One handler for each operation: from a request to the service, and from its result to a response."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from nextvec.inference import joint_probability
from nextvec.inference.because import UNNAMED
from nextvec.serving import openapi
from nextvec.serving.answers import RoutingRequest, ServedAnswer
from nextvec.serving.bodies import Receive, Scope
from nextvec.serving.canary import Canary
from nextvec.serving.control import Control
from nextvec.serving.dashboard import FILES, page
from nextvec.serving.disconnects import unless_disconnected
from nextvec.serving.guard import Send
from nextvec.serving.metrics import CONTENT_TYPE
from nextvec.serving.overview import Overviews, unready
from nextvec.serving.parameters import deadline, lengths_of, named
from nextvec.serving.payload import Vectors, check_ids, decode, from_json, from_lists, from_rows
from nextvec.serving.refusal import RefusedError
from nextvec.serving.service import Service
from nextvec.wire.fields import Body
from nextvec.wire.limits import MOST_JSON
from nextvec.wire.media import JSON, OCTETS
from nextvec.wire.operations import ModelDescription, ModelList, ServerStatus
from nextvec.wire.overview import OverviewQuery
from nextvec.wire.predictions import (
    AppendQuery,
    BatchAnswer,
    BatchQuery,
    ContextRequest,
    ExpectedVector,
    Prediction,
    PredictionAnswer,
    PredictQuery,
    Reasons,
)
from nextvec.wire.sessions import ListedSession, PageQuery, RestoredSession, SessionDescription, SessionPage

PIECE = 256 << 10  # bytes of a large answer that are handed to the connection at a time
T = TypeVar("T")
Texts = AppendQuery | PredictQuery | BatchQuery


class _Pieces(Response):
    """A large body, sent as fast as the client reads it. Its bytes count as held until the last piece is sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for first in range(0, max(len(self.body), 1), PIECE):
            more = first + PIECE < len(self.body)
            await send({"type": "http.response.body", "body": self.body[first : first + PIECE], "more_body": more})


class Handlers:
    """See the module.

    Args:
        root: path under which a proxy shows the server, empty without one.
    """

    def __init__(self, service: Service, canary: Canary | None = None, root: str = "") -> None:
        self.service, self.control = service, Control(canary)
        self._document = msgspec.json.encode(openapi.document(service.dim, root))
        self._overviews = Overviews(service, canary.status if canary is not None else lambda: None)
        self._pages = {path: page(path, root) for path in FILES}

    def by_operation(self) -> dict[str, Callable[..., Awaitable[Response]]]:
        """Every handler by the name of its operation in :data:`nextvec.serving.routes.PATHS`."""
        return {
            "sessions": self.sessions,
            "open": self.open,
            "describe": self.describe,
            "delete": self.delete,
            "append": self.append,
            "predict": self.predict,
            "snapshot": self.snapshot,
            "restore": self.restore,
            "once": self.once,
            "batch": self.batch,
            "models": self.models,
            "reload": self.reload,
            "rollouts": self.control.rollouts,
            "intervene": self.control.intervene,
            "overview": self.overview,
            "healthy": self.healthy,
            "ready": self.ready,
            "metrics": self.metrics,
            "document": self.document,
            "dashboard": self.dashboard,
        }

    # Sessions

    async def open(self, request: Request) -> Response:
        name = _session(request)
        made = await self.service.sessions.open(name, self._deadline(request))
        return _json(self._described(name), 201 if made else 200)

    async def sessions(self, _: Request, query: PageQuery) -> Response:
        listed, following = await self.service.sessions.page(query.after or "", query.limit)
        page = SessionPage(msgspec.convert(listed, list[ListedSession]), len(self.service.contexts), following)
        return _json(page)

    async def describe(self, request: Request) -> Response:
        return _json(self._described(_session(request)))

    async def delete(self, request: Request) -> Response:
        name = _session(request)
        if not await self.service.sessions.delete(name, self._deadline(request)):
            raise RefusedError(404, "there is no such session")
        return Response(status_code=204)

    async def append(self, request: Request, query: AppendQuery) -> Response:
        until, name = self._deadline(request), _session(request)
        incarnation = int(query.incarnation, 16) if query.incarnation else None
        self._check_because(query)
        self.service.sessions.describe(name)  # 404 before a text is encoded
        with self.service.sessions.requests.standing(name):
            vectors = await self._vectors(request, until)
        pending = self.service.sessions.append(
            name, vectors, query.seq or None, query.k, _routing_request(request, name), until, incarnation, query.because
        )
        return self._answered(request, query, await self._result(request, pending))

    async def predict(self, request: Request, query: PredictQuery) -> Response:
        until, name = self._deadline(request), _session(request)
        self._check_because(query)
        pending = self.service.sessions.predict(name, query.k, _routing_request(request, name), until, query.because)
        return self._answered(request, query, await self._result(request, pending))

    async def snapshot(self, request: Request) -> Response:
        name, until = _session(request), self._deadline(request)
        request.state.held.hold(int(self.service.sessions.describe(name)["bytes"]))  # an estimate, before memory is allocated
        saved = await self.service.snapshots.save(name, until)
        request.state.held.hold(len(saved))
        return _Pieces(saved, media_type=OCTETS)

    async def restore(self, request: Request) -> Response:
        name, until = _session(request), self._deadline(request)
        if _kind(request, OCTETS) != OCTETS:
            raise RefusedError(415, f"content-type must be {OCTETS}")
        made, restored = await self.service.snapshots.restore(name, await request.body(), until)
        found = {**self.service.sessions.describe(name), "state": "restored" if restored else "rebuilt"}
        return _json(msgspec.convert(found, RestoredSession), 201 if made else 200)

    # Contexts without a session

    async def once(self, request: Request, query: PredictQuery) -> Response:
        until = self._deadline(request)
        self._check_because(query)
        vectors = await self._vectors(request, until)
        asking = _routing_request(request, "")
        pending = self.service.predictions.once([vectors.rows], query.k, asking, until, query.because)
        return self._answered(request, query, (await self._result(request, pending))[0])

    async def batch(self, request: Request, query: BatchQuery) -> Response:
        until = self._deadline(request)
        self._check_because(query)
        vectors = await self._vectors(request, until)
        contexts, start = [], 0
        for length in lengths_of(query.lengths, len(vectors.rows)):
            contexts.append(vectors.rows[start : start + length])
            start += length
        pending = self.service.predictions.once(contexts, query.k, _routing_request(request, ""), until, query.because)
        answers = await self._result(request, pending)
        return _json(BatchAnswer(tuple(Prediction(**self._fields(query, one)) for one in answers), request.state.request))

    # Models and the server

    async def models(self, _: Request) -> Response:
        return _json(ModelList([self._model(name) for name in self.service.models]))

    async def reload(self, request: Request) -> Response:
        model = await self.service.models.reload(named(request.path_params["model"], "model"))
        return _json(self._model(model.name))

    async def overview(self, _: Request, query: OverviewQuery) -> Response:
        return _json(await self._overviews.read(query.documents))

    async def healthy(self, _: Request) -> Response:
        return _json(ServerStatus("alive"))

    async def ready(self, _: Request) -> Response:
        trouble = unready(self.service)
        if trouble is not None:
            raise RefusedError(503, trouble)
        return _json(ServerStatus("ready"))

    async def metrics(self, _: Request) -> Response:
        service = self.service
        service.metrics.queue.set(service.models.waiting)
        service.metrics.sessions.set(len(service.contexts))
        service.metrics.states.set(service.states.bytes)
        service.metrics.log.set(service.contexts.log.bytes)
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    async def document(self, _: Request) -> Response:
        return Response(self._document, media_type=JSON)

    async def dashboard(self, request: Request) -> Response:
        return await self._pages[request.scope["path"]](request)

    # Parts of requests and answers

    def _described(self, session: str) -> SessionDescription:
        return msgspec.convert(self.service.sessions.describe(session), SessionDescription)

    def _model(self, name: str) -> ModelDescription:
        engine = self.service.models[name].engine
        stable = name == self.service.routing.stable
        facts = (engine.digest, engine.dim, engine.encoder_fingerprint, stable, engine.names_rows, engine.place.pid)
        return ModelDescription(name, *facts)

    def _check_because(self, query: Texts) -> None:
        """
        Raises:
            RefusedError: 400 rows of the context are to be named, and the stable model names none.
        """
        if query.because and not self.service.routing.stable_model.engine.names_rows:
            raise RefusedError(400, UNNAMED)

    def _deadline(self, request: Request) -> float:
        """The time of the event loop at which the request ends."""
        seconds = deadline(request.headers.get("x-deadline-ms"), self.service.limits.deadline)
        return asyncio.get_running_loop().time() + seconds

    async def _vectors(self, request: Request, until: float) -> Vectors:
        kind, body = _kind(request), await request.body()
        if kind != JSON:
            return decode(body, kind, self.service.dim)
        if len(body) > MOST_JSON:
            raise RefusedError(413, f"a JSON body has at most {MOST_JSON} bytes; send vectors in binary")
        given = from_json(body, ContextRequest)
        match (given.vectors or None, given.rows or None, given.text or None):
            case (vectors, None, None) if vectors is not None:
                return from_lists(vectors, self.service.dim)
            case (None, rows, None) if rows is not None:
                check_ids(rows, self.service.candidates)
                return from_rows(self.service.rows(rows), rows)
            case (None, None, text) if text is not None and text.strip():
                pending = self.service.encode(text, until)
                return from_rows(await self._result(request, pending, watched=True))
            case _:
                raise RefusedError(400, "the body must hold one of vectors, rows, or a text that is not empty")

    def _answered(self, request: Request, query: Texts, answer: ServedAnswer) -> Response:
        return _json(PredictionAnswer(**self._fields(query, answer), request=request.state.request))

    def _fields(self, query: Texts, answer: ServedAnswer) -> dict[str, Any]:
        """The fields of a :class:`Prediction`."""
        unset, holders = msgspec.UNSET, self.service.holders
        expected = tuple(
            ExpectedVector(
                e.row,
                e.score,
                e.probability,
                e.document,
                e.count,
                unset if e.item is None else e.item,
                e.text if query.text else unset,
                tuple(holders(answer.model, e.row)) if query.rows else unset,
                msgspec.convert(e.because, Reasons | None, from_attributes=True) if query.because else unset,
            )
            for e in answer.expected
        )
        return {
            "expected": expected,
            "probability": joint_probability(answer.expected),
            "arm": answer.arm,
            "model": answer.model,
            "reason": answer.reason,
            "lane": answer.lane,
            "digest": answer.digest,
            "seq": answer.seq,
            "length": answer.length,
        }

    async def _result(self, request: Request, pending: Awaitable[T], watched: bool = False) -> T:
        """The result of a request. The connection is watched only if requests wait in the queue, or if ``watched``."""
        return await (unless_disconnected(request, pending) if self.service.models.waiting or watched else pending)


def _session(request: Request) -> str:
    return named(request.path_params["session"])


def _kind(request: Request, default: str = "") -> str:
    """The content type, without its parameters."""
    return request.headers.get("content-type", default).partition(";")[0].strip().lower()


def _routing_request(request: Request, key: str) -> RoutingRequest:
    return RoutingRequest(key, request.headers.get("x-lane"), request.headers, request.state.rights)


def _json(content: Body, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type=JSON)
