"""HTTP requests to the handlers of their operations. The guard is around all of it."""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from nextvec.serving import parameters, routes
from nextvec.serving.answering import EndedError
from nextvec.serving.bodies import Receive, Scope
from nextvec.serving.canary import Canary
from nextvec.serving.guard import Access, Guard, Send
from nextvec.serving.handlers import Handlers
from nextvec.serving.log import Log
from nextvec.serving.refusal import RefusedError
from nextvec.serving.routes import Operation
from nextvec.serving.service import Service
from nextvec.wire.limits import most_body

Handle = Callable[..., Awaitable[Response]]


class Dispatcher:
    """Plain ASGI: calls the handler of an operation with the request, and with its query where it reads one.

    A request that carries what its operation does not read is refused, because it was meant for another operation.

    Args:
        handlers: of all operations, by name.
    """

    def __init__(self, handlers: Mapping[str, Handle]) -> None:
        self._handlers = {operation.name: handlers[operation.name] for path in routes.PATHS for operation in path.operations}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = routes.find(scope["path"])
        if found is None:
            raise RefusedError(404, "there is no such path; see /openapi.json")
        path, scope["path_params"] = found
        operation = path.operation(scope["method"])
        if operation is None:
            allowed = ", ".join(path.methods)
            raise RefusedError(405, f"this path takes {allowed}", {"allow": allowed})
        scope["operation"] = operation.name
        request = Request(scope, receive)
        try:
            response = await self._answer(request, operation)
        except EndedError:
            detail = "the model's process has ended and is being started again"
            raise RefusedError(503, detail, {"retry-after": "1"}) from None
        await response(scope, receive, send)

    async def _answer(self, request: Request, operation: Operation) -> Response:
        if request.state.length and operation.body is None:
            raise RefusedError(400, f"{request.method} reads no body here; send none")
        handle, text = self._handlers[operation.name], request.scope["query_string"]
        if operation.query is not None:
            return await handle(request, parameters.query(text, operation.query))
        if text:
            parameters.check_none(text)
        return await handle(request)


def application(
    service: Service,
    log: Log,
    access: Access | None = None,
    canary: Canary | None = None,
    root: str = "",
) -> Guard:
    """The whole server as an ASGI application.

    Args:
        root: path under which a proxy shows the server, empty without one.
    """
    handlers = Handlers(service, canary, root).by_operation()
    return Guard(Dispatcher(handlers), service.metrics, log, access, most_body(service.dim))
