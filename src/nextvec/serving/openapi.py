"""The OpenAPI document, generated from the table of paths and the structs that travel."""

from http import HTTPStatus
from typing import Any

import msgspec

from nextvec.serving.routes import PATHS, SNAPSHOT, Accepted, Operation, Path
from nextvec.wire.fields import Body, DeadlineMs, Name
from nextvec.wire.limits import MOST_JSON, MOST_SNAPSHOT, most_body, most_rows
from nextvec.wire.media import BINARY, JSON, OCTETS, PROBLEM
from nextvec.wire.operations import RolloutVerb
from nextvec.wire.predictions import ContextRequest
from nextvec.wire.problem import Problem

Json = dict[str, Any]

COMMON = (400, 401, 403, 405, 408, 413, 415, 429, 500, 503, 504)  # problems of the guard and of the request queue
HEADERS: dict[str, Any] = {"x-deadline-ms": DeadlineMs, "x-lane": str}
IN_PATHS: dict[str, Any] = {"session": Name, "model": Name, "rollout": Name, "verb": RolloutVerb}
_REFERENCE = "#/components/schemas/{name}"


def document(dim: int, root: str = "") -> Json:
    """OpenAPI 3.1 of a server whose models read vectors of ``dim`` values.

    Args:
        root: path under which a proxy shows the server, such as ``/nextvec``.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nextvec",
            "version": "1",
            "description": "Sessions of embedding vectors, and predictions of the next vector. Errors are problems (RFC 9457).",
        },
        "servers": [{"url": root or "/"}],
        "security": [{"key": []}, {}],
        "paths": {path.template: _path(path, dim) for path in PATHS},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(dim),
            "responses": {"problem": {"description": "A problem.", "content": {PROBLEM: {"schema": _reference(Problem)}}}},
        },
    }


def schemas(dim: int) -> Json:
    """JSON Schemas of all bodies, by name of their struct."""
    operations = [operation for path in PATHS for operation in path.operations]
    bodies = [body.json for operation in operations if (body := operation.body) and body.json]
    answers = [answer for operation in operations for answer in operation.answers.values() if isinstance(answer, type)]
    _, found = msgspec.json.schema_components([Problem, *bodies, *answers], ref_template=_REFERENCE)
    context = found[ContextRequest.__name__]
    context["oneOf"] = [{"required": [name]} for name in ContextRequest.__struct_fields__]
    context["properties"]["vectors"]["items"] |= {"minItems": dim, "maxItems": dim}
    return found


def _path(path: Path, dim: int) -> Json:
    names = [segment[1:-1] for segment in path.segments if segment.startswith("{")]
    parameters = [_parameter(name, "path", msgspec.json.schema(IN_PATHS[name]), required=True) for name in names]
    operations = {operation.method.lower(): _operation(operation, dim) for operation in path.operations}
    return {"parameters": parameters, **operations} if parameters else operations


def _operation(operation: Operation, dim: int) -> Json:
    refused = {str(status): {"$ref": "#/components/responses/problem"} for status in sorted({*COMMON, *operation.problems})}
    answers = {str(status): _answer(status, content) for status, content in operation.answers.items()}
    found: Json = {"summary": operation.summary, "responses": {**refused, **answers}}
    parameters = [] if operation.query is None else _query(operation.query)
    parameters += [_parameter(name, "header", msgspec.json.schema(HEADERS[name])) for name in operation.headers]
    if parameters:
        found["parameters"] = parameters
    if operation.body is not None:
        found["requestBody"] = _body(operation.body, dim)
    return found


def _answer(status: int, content: type[Body] | str | None) -> Json:
    description = HTTPStatus(status).phrase
    if content is None:
        return {"description": description}
    if not isinstance(content, str):
        return {"description": description, "content": {JSON: {"schema": _reference(content)}}}
    schemas: Json = {JSON: {"schema": {"type": "object"}}, OCTETS: {"schema": _BINARY}}
    return {"description": description, "content": {content: schemas.get(content, {})}}


# "format: binary" is what generators of clients know; they ignore JSON Schema's own contentMediaType.
_BINARY: Json = {"type": "string", "format": "binary"}


def _body(body: Accepted, dim: int) -> Json:
    if body is SNAPSHOT:
        content = {kind: {"schema": _BINARY} for kind in body.binary}
        limits = f"A snapshot of a session of this server or of another one: at most {MOST_SNAPSHOT} bytes."
    else:
        content = {kind: {"schema": {**_BINARY, "description": _rows(kind, dim)}} for kind in body.binary}
        limits = f"A JSON body has at most {MOST_JSON} bytes."
        if body.binary:
            limits = f"A binary body has at most {most_body(dim)} bytes. {limits}"
    if body.json is not None:
        content[JSON] = {"schema": _reference(body.json)}
    return {"required": body.required, "description": limits, "content": content}


def _rows(kind: str, dim: int) -> str:
    itemsize = int(BINARY[kind][-1])
    most = most_rows(dim, itemsize)
    return f"Little-endian float{8 * itemsize} rows of {dim} values: at most {most} rows, {most * dim * itemsize} bytes."


def _query(kind: type[Body]) -> list[Json]:
    whole = msgspec.json.schema_components([kind], ref_template=_REFERENCE)[1][kind.__name__]
    return [
        _parameter(name, "query", schema, required=name in whole["required"]) for name, schema in whole["properties"].items()
    ]


def _parameter(name: str, place: str, schema: Json, required: bool = False) -> Json:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _reference(kind: type[Body]) -> Json:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}
