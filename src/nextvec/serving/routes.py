"""All paths of the server: who may use them, what they read and what they answer.

The server dispatches by this table, the guard takes rights from it, and ``/openapi.json`` is generated from it. So there is no
path without a right and a documentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nextvec.serving.dashboard import FILES
from nextvec.serving.rights import HIGHEST, Right
from nextvec.wire.fields import Body
from nextvec.wire.media import BINARY, OCTETS
from nextvec.wire.operations import (
    ModelDescription,
    ModelList,
    ReasonRequest,
    RolloutChange,
    RolloutList,
    ServerStatus,
)
from nextvec.wire.overview import Overview, OverviewQuery
from nextvec.wire.predictions import AppendQuery, BatchAnswer, BatchQuery, ContextRequest, PredictionAnswer, PredictQuery
from nextvec.wire.sessions import PageQuery, RestoredSession, SessionDescription, SessionPage


@dataclass(frozen=True)
class Accepted:
    """A body that an operation reads.

    Attributes:
        json: the struct of a JSON body; None where it reads none.
        binary: content types of binary bodies.
        required: whether a request needs a body.
    """

    json: type[Body] | None = None
    binary: tuple[str, ...] = ()
    required: bool = True


VECTORS = Accepted(ContextRequest, tuple(BINARY))
SNAPSHOT = Accepted(binary=(OCTETS,))
REASON = Accepted(ReasonRequest, required=False)


@dataclass(frozen=True)
class Operation:
    """One method of a path.

    Attributes:
        name: of its handler, and of the route in metrics and the log.
        answers: by status; a struct is JSON, a text is the content type of anything else, None is an empty body.
        problems: statuses of problems beside those of :data:`nextvec.serving.openapi.COMMON`.
        query: query parameters that it reads; None for none.
        headers: optional headers that it reads.
    """

    method: str
    name: str
    summary: str
    answers: Mapping[int, type[Body] | str | None]
    problems: tuple[int, ...] = ()
    query: type[Body] | None = None
    headers: tuple[str, ...] = ()
    body: Accepted | None = None


@dataclass(frozen=True)
class Path:
    """One path and its operations.

    Attributes:
        template: segments in braces are parameters.
        right: that a key needs; None for what every client may read.
    """

    template: str
    right: Right | None
    operations: tuple[Operation, ...]

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(self.template.split("/"))

    def operation(self, method: str) -> Operation | None:
        """None where the path does not take the method. HEAD is a GET whose body is not sent."""
        wanted = "GET" if method == "HEAD" else method
        return next((operation for operation in self.operations if operation.method == wanted), None)

    @property
    def methods(self) -> list[str]:
        """All methods, HEAD among them, in alphabetical order."""
        own = {operation.method for operation in self.operations}
        return sorted(own | {"HEAD"} if "GET" in own else own)


_DEADLINE = ("x-deadline-ms",)
_ROUTED = ("x-deadline-ms", "x-lane")

PATHS: tuple[Path, ...] = (
    Path(
        "/v1/sessions",
        "operate",  # a session's name is known to its owner; the list has all names
        (Operation("GET", "sessions", "List all sessions by name, page by page", {200: SessionPage}, query=PageQuery),),
    ),
    Path(
        "/v1/sessions/{session}",
        "session",
        (
            Operation(
                "PUT", "open", "Begin a session", {200: SessionDescription, 201: SessionDescription}, (507,), headers=_DEADLINE
            ),
            Operation("GET", "describe", "Describe a session", {200: SessionDescription}, (404,)),
            Operation("DELETE", "delete", "Delete a session", {204: None}, (404, 507), headers=_DEADLINE),
        ),
    ),
    Path(
        "/v1/sessions/{session}/append",
        "session",
        (
            Operation(
                "POST",
                "append",
                "Append vectors and predict",
                {200: PredictionAnswer},
                (404, 409, 413, 422, 507),
                AppendQuery,
                _ROUTED,
                VECTORS,
            ),
        ),
    ),
    Path(
        "/v1/sessions/{session}/predict",
        "session",
        (
            Operation(
                "POST",
                "predict",
                "Predict what comes next in a session",
                {200: PredictionAnswer},
                (404, 409),
                PredictQuery,
                _ROUTED,
            ),
        ),
    ),
    Path(
        "/v1/sessions/{session}/snapshot",
        "session",
        (
            Operation("GET", "snapshot", "Save context and state", {200: OCTETS}, (404,), headers=_DEADLINE),
            Operation(
                "PUT",
                "restore",
                "Begin a session with a snapshot",
                {200: RestoredSession, 201: RestoredSession},
                (409, 422, 507),
                headers=_DEADLINE,
                body=SNAPSHOT,
            ),
        ),
    ),
    Path(
        "/v1/predict",
        "predict",
        (
            Operation(
                "POST",
                "once",
                "Predict what comes next in one whole context",
                {200: PredictionAnswer},
                (413, 422),
                PredictQuery,
                _ROUTED,
                VECTORS,
            ),
        ),
    ),
    Path(
        "/v1/predict/batch",
        "predict",
        (
            Operation(
                "POST",
                "batch",
                "Predict what comes next in several whole contexts",
                {200: BatchAnswer},
                (413, 422),
                BatchQuery,
                _ROUTED,
                VECTORS,
            ),
        ),
    ),
    Path("/v1/models", "predict", (Operation("GET", "models", "List the models", {200: ModelList}),)),
    Path(
        "/v1/models/{model}/reload",
        "operate",
        (Operation("POST", "reload", "Open a model's run again", {200: ModelDescription}, (404, 409)),),
    ),
    Path(
        "/v1/rollouts",
        "operate",
        (Operation("GET", "rollouts", "Report the rollout in progress and earlier ones", {200: RolloutList}),),
    ),
    Path(
        "/v1/rollouts/{rollout}/{verb}",
        "operate",
        (Operation("POST", "intervene", "Pause, resume, abort or promote", {200: RolloutChange}, (404, 409), body=REASON),),
    ),
    Path(
        "/v1/overview",
        "operate",
        (Operation("GET", "overview", "Report what the dashboard shows", {200: Overview}, query=OverviewQuery),),
    ),
    Path("/healthz", None, (Operation("GET", "healthy", "Say that the process runs", {200: ServerStatus}),)),
    Path("/readyz", None, (Operation("GET", "ready", "Say whether it takes requests", {200: ServerStatus}),)),
    Path("/metrics", "operate", (Operation("GET", "metrics", "Report metrics for Prometheus", {200: "text/plain"}),)),
    Path("/openapi.json", "predict", (Operation("GET", "document", "Return this document", {200: "application/json"}),)),
    *(
        Path(path, None, (Operation("GET", "dashboard", "Return a file of the dashboard", {200: kind, 304: None}),))
        for path, (_, kind) in FILES.items()
    ),
)

_FIXED = {path.template: path for path in PATHS if "{" not in path.template}
_TEMPLATES = tuple((path.segments, path) for path in PATHS if "{" in path.template)


def find(path: str) -> tuple[Path, dict[str, str]] | None:
    """The path of a request, and its parameters by name; None where there is no such path."""
    fixed = _FIXED.get(path)
    if fixed is not None:
        return fixed, {}
    parts = path.split("/")
    for segments, found in _TEMPLATES:
        if len(segments) == len(parts) and all(
            part if segment[:1] == "{" else part == segment for segment, part in zip(segments, parts, strict=True)
        ):
            return found, {s[1:-1]: part for s, part in zip(segments, parts, strict=True) if s[:1] == "{"}
    return None


def right(path: str) -> Right | None:
    """The right that requests to a path need; None where they need none. An unknown path needs the highest right."""
    found = find(path)
    return HIGHEST if found is None else found[0].right
