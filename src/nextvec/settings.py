"""Frozen settings: bounds on fields, values parsed from text, JSON in both directions. Unknown names are errors."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from nextvec.errors import SettingsError, did_you_mean

S = TypeVar("S")


def bounded(default: Any, least: int | float, most: int | float) -> Any:
    """A dataclass field with a default and bounds, both included, which :func:`check_bounds` checks; None is always valid."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most})


def check_bounds(settings: object) -> None:
    """Check every field of a dataclass that was declared by :func:`bounded`.

    Raises:
        SettingsError: a value outside its bounds.
    """
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if "least" not in field.metadata or value is None:
            continue
        least, most = field.metadata["least"], field.metadata["most"]
        if not least <= value <= most:
            nearest = most if value > most else least
            raise SettingsError(
                f"{field.name}={value}: must be between {least:,} and {most:,}; the nearest right one is {nearest:g}"
            )


def to_json(settings: object) -> dict[str, Any]:
    """Every setting, resolved."""
    return dataclasses.asdict(settings)  # type: ignore[call-overload]


def from_json(kind: type[S], values: Mapping[str, Any]) -> S:
    """Read back what :func:`to_json` wrote.

    Raises:
        SettingsError: a name that ``kind`` does not have, or a value that is not of its type.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(f"{kind.__name__} is {values!r}; want names and values")
    for name, value in values.items():
        hint = _hint(kind, name)
        if not fits(hint, value):
            raise SettingsError(f"{name} is {value!r}; want {getattr(hint, '__name__', hint)}")
    return kind(**values)


def fits(hint: Any, value: object) -> bool:
    """Whether a value read from JSON has the type ``hint``: a plain type, a ``Literal``, or a list, tuple or dict of these."""
    origin, given = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(kind, value) for kind in given)
    if origin is Literal:
        return value in given
    if origin is list:
        return isinstance(value, list) and all(fits(given[0], item) for item in cast("list[Any]", value))
    if origin is tuple:
        held = cast("list[Any]", value) if isinstance(value, list) else []
        return len(held) == len(given) and all(map(fits, given, held))
    if origin is dict:
        items = cast("dict[Any, Any]", value).items() if isinstance(value, dict) else None
        return items is not None and all(fits(given[0], key) and fits(given[1], item) for key, item in items)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _hint(kind: type, name: str) -> Any:
    hints = get_type_hints(kind)
    if name not in hints:
        raise SettingsError(f"{kind.__name__} has no setting {name!r}; {did_you_mean(name, hints)}")
    return hints[name]


def parsed(hint: Any, name: str, text: str) -> Any:
    """Parse ``text`` as the type ``hint``; the text ``none`` becomes None if the type allows it.

    Args:
        name: of the setting, for the message.

    Raises:
        SettingsError: the text is not of that type.
    """
    if get_origin(hint) in (Union, types.UnionType):
        if text == "none":
            return None
        hint = next(h for h in get_args(hint) if h is not type(None))
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise SettingsError(f"{name}={text}: must be one of {', '.join(get_args(hint))}")
        return text
    if hint is bool:
        if text not in ("true", "false"):
            raise SettingsError(f"{name}={text}: must be true or false")
        return text == "true"
    try:
        return hint(text)
    except ValueError:
        raise SettingsError(f"{name}={text}: must be of type {hint.__name__}") from None
