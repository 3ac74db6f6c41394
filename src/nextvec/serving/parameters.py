"""Parameters of requests: names in paths, query strings, headers."""

from functools import cache
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from nextvec.serving.payload import one_line
from nextvec.serving.refusal import RefusedError
from nextvec.wire.fields import Body, DeadlineMs, is_name
from nextvec.wire.limits import MOST_DEADLINE_MS, MOST_VECTORS

Q = TypeVar("Q", bound=Body)


def named(text: str, what: str = "session") -> str:
    """``text``, if it is a name.

    Raises:
        RefusedError: 400 not 1 to 64 of A-Z a-z 0-9 _ -
    """
    if not is_name(text):
        raise RefusedError(400, f"the name of a {what} has 1 to 64 of A-Z a-z 0-9 _ -")
    return text


def query(text: bytes, kind: type[Q]) -> Q:
    """A query string as the struct that its operation reads.

    Raises:
        RefusedError: 400 a parameter that the operation does not read, that is given twice, is missing or has a wrong value.
    """
    found: dict[str, str] = {}
    for name, value in parse_qsl(text.decode("latin-1"), keep_blank_values=True):
        check_known(name, kind.__struct_fields__)
        if name in found:
            raise RefusedError(400, f"query parameter {name!r} is given more than once")
        if name in _whole(kind) and not (value.isascii() and value.isdigit()):  # msgspec would also take 1.0 and 1e2
            raise RefusedError(400, f"query parameter {name!r} must be a whole number")
        found[name] = value
    try:
        return msgspec.convert(found, kind, strict=False)
    except msgspec.ValidationError as error:
        raise RefusedError(400, f"the query: {one_line(error)}") from None


def check_none(text: bytes) -> None:
    """
    Args:
        text: query string of an operation without query parameters.

    Raises:
        RefusedError: 400 it has a parameter.
    """
    for name, _ in parse_qsl(text.decode("latin-1"), keep_blank_values=True):
        check_known(name, ())


def check_known(name: str, known: tuple[str, ...]) -> None:
    """
    Raises:
        RefusedError: 400 ``name`` is none of the ``known`` query parameters.
    """
    if name not in known:
        raise RefusedError(400, f"there is no query parameter {name[:40]!r} here; known: {', '.join(known) or 'none'}")


@cache
def _whole(kind: type[Body]) -> frozenset[str]:
    """Names of the parameters that are whole numbers."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return frozenset(field.encode_name for field in info.fields if _holds_int(field.type))


def _holds_int(kind: msgspec.inspect.Type) -> bool:
    match kind:
        case msgspec.inspect.Metadata() | msgspec.inspect.UnionType():
            inner = (kind.type,) if isinstance(kind, msgspec.inspect.Metadata) else kind.types
            return any(_holds_int(one) for one in inner)
        case _:
            return isinstance(kind, msgspec.inspect.IntType)


def lengths_of(text: str, total: int) -> list[int]:
    """``10,20,30``: how many of ``total`` vectors each context of a batch has.

    Raises:
        RefusedError: 400 not whole numbers, or another sum.
    """
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) <= 19 and 1 <= int(part) <= MOST_VECTORS for part in parts):
        raise RefusedError(400, f"each of lengths must be a whole number from 1 to {MOST_VECTORS}")
    lengths = [int(part) for part in parts]
    if sum(lengths) != total:
        raise RefusedError(400, f"lengths add up to {sum(lengths)}; the body has {total} vectors")
    return lengths


def deadline(text: str | None, default: float) -> float:
    """``x-deadline-ms`` in seconds; ``default`` without the header.

    Raises:
        RefusedError: 400 not a number from 1 to 60,000.
    """
    if text is None:
        return default
    try:
        return msgspec.convert(text, DeadlineMs, strict=False) / 1e3
    except msgspec.ValidationError:
        raise RefusedError(400, f"x-deadline-ms must be from 1 to {MOST_DEADLINE_MS}") from None
