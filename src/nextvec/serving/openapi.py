"""The OpenAPI document, written out: what is promised is read here, and tests hold the server to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nextvec.serving.dashboard import FILES
from nextvec.serving.wire import (
    F16,
    F32,
    JSON,
    MOST_JSON,
    MOST_K,
    MOST_ROWS,
    MOST_SNAPSHOT,
    OCTETS,
    PROBLEM,
    most_body,
    most_rows,
)

Json = dict[str, Any]

WHOLE: Json = {"type": "integer", "minimum": 0}
INCARNATION: Json = {
    "type": "string",
    "pattern": "^[0-9a-f]{16}$",
    "description": "Drawn when a session begins: one that is deleted and made again has another.",
}
NAME: Json = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}


@dataclass(frozen=True)
class Inputs:
    """What an operation reads beside its path.

    Attributes:
        query: names of query parameters.
        body: whether it reads a body.
    """

    query: tuple[str, ...]
    body: bool


def inputs() -> dict[str, dict[str, Inputs]]:
    """What each operation reads, by path and method in capitals."""
    return {
        path: {
            method.upper(): Inputs(
                tuple(p["name"] for p in operation.get("parameters", []) if p["in"] == "query"), "requestBody" in operation
            )
            for method, operation in item.items()
            if method != "parameters"
        }
        for path, item in _paths(1).items()
    }


def document(dim: int, root: str = "") -> Json:
    """OpenAPI 3.1 of a server of models that read vectors ``dim`` wide.

    Args:
        root: path under which a proxy shows the server, such as ``/nextvec``.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nextvec",
            "version": "1",
            "description": "Sessions of embedding vectors, and what comes next. Errors are problems as in RFC 9457.",
        },
        "servers": [{"url": root or "/"}],
        "security": [{"key": []}, {}],
        "paths": _paths(dim),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": SCHEMAS,
            "responses": {
                "problem": {"description": "A problem, in one line.", "content": {PROBLEM: {"schema": _ref("Problem")}}}
            },
        },
    }


def _object(properties: Mapping[str, Json], optional: tuple[str, ...] = ()) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_ANSWER: Json = {
    "expected": {"type": "array", "items": _ref("Expected"), "description": "Distinct vectors, best first."},
    "arm": {"enum": ["stable", "canary"]},
    "model": NAME,
    "reason": {
        "type": "string",
        "description": "Why this arm and model: `no canary, short`, `bucket, long`, `no canary, expert`, `canary late`, …",
    },
    "digest": {"type": "string", "description": "Names the weights and their format."},
    "seq": {"type": ["integer", "null"], "minimum": 0, "description": "Appends so far; null without a session."},
    "length": {**WHOLE, "description": "Vectors so far."},
    "lane": {"type": ["string", "null"], "description": "What the context is about; null where no lanes are served."},
}

_SESSION: Json = {"session": NAME, "seq": WHOLE, "length": WHOLE, "bytes": WHOLE, "incarnation": INCARNATION}

SCHEMAS: Mapping[str, Json] = {
    "Expected": _object(
        {
            "row": {**WHOLE, "description": "Of the bank: the first that holds this vector."},
            "score": {"type": "number"},
            "document": {"type": "string"},
            "count": {"type": "integer", "minimum": 1, "description": "Rows of the bank that hold this vector."},
            "text": {"type": ["string", "null"], "description": "With ?text=1; null where the bank holds vectors only."},
            "rows": {
                "type": "array",
                "items": WHOLE,
                "minItems": 1,
                "maxItems": MOST_ROWS,
                "description": f"With ?rows=1: the rows that hold this vector, ascending; the first {MOST_ROWS} of count.",
            },
        },
        optional=("text", "rows"),
    ),
    "Answer": _object({**_ANSWER, "request": {"type": "string"}}),
    "Answers": _object({"answers": {"type": "array", "items": _object(_ANSWER)}, "request": {"type": "string"}}),
    "Session": _object(_SESSION),
    "Restored": _object(
        {
            **_SESSION,
            "state": {
                "enum": ["restored", "rebuilt"],
                "description": "`rebuilt`: the snapshot is of another model; the next request reads the context anew.",
            },
        }
    ),
    "Sessions": _object(
        {
            "sessions": {
                "type": "array",
                "items": _object(
                    {
                        **_SESSION,
                        "idle": {
                            "type": "number",
                            "minimum": 0,
                            "description": "Seconds since its last request, or the start.",
                        },
                    }
                ),
            },
            "count": {**WHOLE, "description": "All sessions, on this page or not."},
            "next": {"type": ["string", "null"], "description": "Give it as `after` for the next page; null on the last one."},
        }
    ),
    "Model": _object(
        {
            "name": NAME,
            "digest": {"type": "string"},
            "dim": WHOLE,
            "encoder": {"type": "string"},
            "stable": {"type": "boolean"},
            "process": {"type": ["integer", "null"], "description": "that computes; null while it is being started again"},
        }
    ),
    "Models": _object({"models": {"type": "array", "items": _ref("Model")}}),
    "Rollouts": _object(
        {
            "current": {"type": ["object", "null"], "description": "The report: state, steps, evidence, what cannot be seen."},
            "past": {
                "type": "array",
                "items": _object({name: {"type": "string"} for name in ("rollout", "state", "time", "cause")}),
            },
            "trouble": {"type": ["string", "null"], "description": "What is wrong with the ledger."},
            "watching": {"type": "boolean", "description": "Whether this server drives the rollout."},
        }
    ),
    "Overview": _object(
        {
            "server": {"type": "object", "description": "Version, ready or why not, since when."},
            "models": {"type": "array", "items": {"type": "object"}},
            "bank": {"type": "object", "description": "Where candidates come from, and whether it has text."},
            "sessions": {"type": "object", "description": "How many, and those last asked for."},
            "load": {
                "type": "object",
                "description": "Queue, budget, and the last 15 minutes: points are answers, refused, failed, p50, p95, p99.",
            },
            "lanes": {
                "type": ["array", "null"],
                "items": {"type": "object"},
                "description": "Who answers each, whether it is up, answers, failures, P95, hits; null without lanes.",
            },
            "rollout": {"type": ["object", "null"], "description": "Null where the server takes part in none."},
            "runs": {"type": "array", "items": {"type": "object"}, "description": "Settings, and every exam that was sat."},
            "documents": {"type": "array", "items": {"type": "object"}, "description": "With ?documents=1; the first ones."},
        },
        optional=("documents",),
    ),
    "Moved": _object(
        {
            "rollout": NAME,
            "state": {"type": "string"},
            "epoch": WHOLE,
            "warning": {"type": ["string", "null"], "description": "Of a promotion that the evidence does not carry."},
        }
    ),
    "Status": _object({"status": {"enum": ["alive", "ready"]}}),
    "Problem": {
        "type": "object",
        "properties": {
            "type": {"const": "about:blank"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "request": {"type": "string"},
            "seq": {**WHOLE, "description": "Of a session, with 409, 503 and 504: appends so far."},
            "length": {**WHOLE, "description": "Of a session, with 409, 503 and 504: vectors so far."},
            "incarnation": {**INCARNATION, "description": "With 409, 503 and 504: of the session that has this name."},
            "applied": {"type": "boolean", "description": "With 503 and 504: whether this append was written."},
            "fits": {**WHOLE, "description": "Of a text that is too long for its deadline: characters that are not."},
        },
        "required": ["type", "title", "status", "detail", "request"],
    },
}


def _paths(dim: int) -> Json:
    session, model = _in_path("session"), _in_path("model")
    k = _query("k", {"type": "integer", "minimum": 1, "maximum": MOST_K, "default": 10})
    k_or_none = _query("k", {"type": "integer", "minimum": 0, "maximum": MOST_K, "default": 10}, "0 appends only.")
    seq = _query("seq", {"type": "integer", "minimum": 1}, "Appends so far + 1. The last one again is not applied twice.")
    incarnation = _query("incarnation", INCARNATION, "Refuse the append with 409 if the session is another one by now.")
    text = _query("text", {"enum": ["0", "1", "true", "false"]}, "1 adds the texts of chunks.")
    rows = _query("rows", {"enum": ["0", "1", "true", "false"]}, f"1 adds the rows that hold each vector, at most {MOST_ROWS}.")
    lengths = _query("lengths", {"type": "string"}, "Vectors of each context: 10,20,30.", required=True)
    answer = {200: _content("What is expected next.", _ref("Answer"))}
    of_session = {200: _content("Where it stands.", _ref("Session"))}
    body = _body(dim)
    head = [
        _header("x-deadline-ms", {"type": "number", "minimum": 1, "maximum": 60_000}),
        _header("x-lane", {"type": "string"}),
    ]
    return {
        "/v1/sessions": {
            "get": _operation(
                "All sessions by name, page by page",
                {200: _content("A page.", _ref("Sessions"))},
                parameters=[
                    _query("limit", {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100}),
                    _query("after", NAME, "The page begins after this name."),
                ],
            )
        },
        "/v1/sessions/{session}": {
            "parameters": [session],
            "put": _operation("Begin a session", {**of_session, 201: _content("Begun.", _ref("Session"))}, (507,), head[:1]),
            "get": _operation("Where a session stands", of_session, (404,)),
            "delete": _operation("Forget a session", {204: {"description": "Forgotten."}}, (404, 507), head[:1]),
        },
        "/v1/sessions/{session}/append": {
            "parameters": [session],
            "post": _operation(
                "Append vectors, predict",
                answer,
                (404, 409, 413, 422, 507),
                [seq, incarnation, k_or_none, text, rows, *head],
                body,
            ),
        },
        "/v1/sessions/{session}/predict": {
            "parameters": [session],
            "post": _operation("What comes next", answer, (404, 409), [k, text, rows, *head]),
        },
        "/v1/sessions/{session}/snapshot": {
            "parameters": [session],
            "get": _operation("Context and state, for another server", {200: _binary("A snapshot.")}, (404,), head[:1]),
            "put": _operation(
                "Begin a session with a snapshot",
                {200: _content("It stood so already.", _ref("Restored")), 201: _content("Begun.", _ref("Restored"))},
                (409, 422, 507),
                head[:1],
                {
                    "required": True,
                    "description": f"What GET gave, here or on another server: at most {MOST_SNAPSHOT} bytes.",
                    "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}},
                },
            ),
        },
        "/v1/predict": {
            "post": _operation("What comes next in one whole context", answer, (413, 422), [k, text, rows, *head], body)
        },
        "/v1/predict/batch": {
            "post": _operation(
                "What comes next in many whole contexts",
                {200: _content("One answer per context.", _ref("Answers"))},
                (413, 422),
                [k, text, rows, lengths, *head],
                body,
            )
        },
        "/v1/models": {"get": _operation("What is served", {200: _content("Models.", _ref("Models"))})},
        "/v1/models/{model}/reload": {
            "parameters": [model],
            "post": _operation("Open a model's run again", {200: _content("The new model.", _ref("Model"))}, (404, 409)),
        },
        "/v1/rollouts": {
            "get": _operation("The rollout under way, and past ones", {200: _content("How it stands.", _ref("Rollouts"))})
        },
        "/v1/rollouts/{rollout}/{verb}": {
            "parameters": [
                _in_path("rollout"),
                {**_in_path("verb"), "schema": {"enum": ["pause", "resume", "abort", "promote"]}},
            ],
            "post": _operation(
                "Pause, resume, abort or promote",
                {200: _content("Where it is now.", _ref("Moved"))},
                (404, 409),
                body={
                    "required": False,
                    "content": {JSON: {"schema": _object({"reason": {"type": "string", "maxLength": 500}})}},
                },
            ),
        },
        "/v1/overview": {
            "get": _operation(
                "What the dashboard shows",
                {200: _content("Everything at one glance.", _ref("Overview"))},
                parameters=[_query("documents", {"enum": ["0", "1", "true", "false"]}, "1 adds documents of the bank.")],
            )
        },
        "/healthz": {"get": _operation("The process lives", {200: _content("It does.", _ref("Status"))})},
        "/readyz": {"get": _operation("It takes requests", {200: _content("It does.", _ref("Status"))})},
        "/metrics": {"get": _operation("For Prometheus", {200: {"description": "Text.", "content": {"text/plain": {}}}})},
        **{path: {"get": _operation("The dashboard", _file(kind))} for path, (_, kind) in FILES.items()},
        "/openapi.json": {"get": _operation("This document", {200: _content("OpenAPI 3.1.", {"type": "object"})})},
    }


def _operation(
    summary: str,
    answers: Mapping[int, Json],
    problems: tuple[int, ...] = (),
    parameters: list[Json] | None = None,
    body: Json | None = None,
) -> Json:
    # What the guard and the queue may answer to anything.
    refused = {
        status: {"$ref": "#/components/responses/problem"} for status in (400, 401, 403, 405, 408, 415, 429, 500, 503, 504)
    }
    refused |= {status: {"$ref": "#/components/responses/problem"} for status in (*problems, 413)}
    operation: Json = {
        "summary": summary,
        "responses": {str(status): value for status, value in {**refused, **answers}.items()},
    }
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = body
    return operation


def _body(dim: int) -> Json:
    def rows(kind: str, itemsize: int) -> Json:
        # "format: binary" is what generators of clients know; JSON Schema's own contentMediaType they pass over.
        most = most_rows(dim, itemsize)
        text = f"Little-endian {kind} rows of {dim} values: at most {most} rows, {most * dim * itemsize} bytes."
        return {"schema": {"type": "string", "format": "binary", "description": text}}

    vector = {"type": "array", "items": {"type": "number"}, "minItems": dim, "maxItems": dim}
    one_of = [
        _object({"vectors": {"type": "array", "items": vector, "minItems": 1}}),
        _object({"rows": {"type": "array", "items": WHOLE, "minItems": 1, "description": "Rows of the bank."}}),
        _object({"text": {"type": "string", "minLength": 1}}),
    ]
    content = {
        OCTETS: rows("float32", 4),
        F32: rows("float32", 4),
        F16: rows("float16", 2),
        JSON: {"schema": {"oneOf": one_of}},
    }
    limits = f"A binary body has at most {most_body(dim)} bytes, a JSON body at most {MOST_JSON}."
    return {"required": True, "description": limits, "content": content}


def _content(description: str, schema: Json) -> Json:
    return {"description": description, "content": {JSON: {"schema": schema}}}


def _file(kind: str) -> dict[int, Json]:
    return {200: {"description": "A file of the page.", "content": {kind: {}}}, 304: {"description": "As it was."}}


def _binary(description: str) -> Json:
    return {"description": description, "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}


def _in_path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": NAME}


def _query(name: str, schema: Json, description: str = "", required: bool = False) -> Json:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description}


def _header(name: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": schema}
