"""Tables of lanes: the 16 domains, or a user's own from a TOML file."""

import hashlib
import json
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nextvec.errors import SettingsError, did_you_mean
from nextvec.lanes.taxonomy import DOMAINS, Term

FEWEST, MOST = 2, 16
KEYS = ("name", "description", "examples")


@dataclass(frozen=True)
class Table:
    """Lanes, numbered in their order.

    Attributes:
        lanes: from 2 to 16, each with a name and a description of its own.
    """

    lanes: tuple[Term, ...]

    def __post_init__(self) -> None:
        if not FEWEST <= len(self.lanes) <= MOST:
            raise SettingsError(f"a table of lanes has {FEWEST} to {MOST} of them, not {len(self.lanes)}")
        for what, values in (("name", self.names), ("description", tuple(lane.description for lane in self.lanes))):
            folded = [value.casefold() for value in values]
            twice = next((value for value, key in zip(values, folded, strict=True) if folded.count(key) > 1), None)
            if twice is not None:
                raise SettingsError(f"two lanes have the {what} {twice!r}; give each lane its own")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(lane.name for lane in self.lanes)

    @property
    def digest(self) -> str:
        """sha256 over names, descriptions and examples, in their order."""
        return hashlib.sha256(json.dumps([asdict(lane) for lane in self.lanes]).encode()).hexdigest()

    def number(self, name: str) -> int:
        """
        Raises:
            SettingsError: no lane has this name.
        """
        if name not in self.names:
            raise SettingsError(f"there is no lane {name!r}; {did_you_mean(name, self.names)}")
        return self.names.index(name)


DEFAULT = Table(DOMAINS)


def read_table(path: str | Path) -> Table:
    """A table from a ``.toml`` file of ``[[lane]]`` with ``name``, ``description`` and, optionally, ``examples``.

    Raises:
        SettingsError: not TOML, a key that is unknown, or lanes that are too many, empty or the same.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    try:
        _known(content, ("lane",), "the file")
        asked = content.get("lane")
        if not isinstance(asked, list) or not asked:
            raise SettingsError("no lane; write at least two [[lane]]")
        return Table(tuple(_lane(number, lane) for number, lane in enumerate(asked, 1)))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _lane(number: int, values: Any) -> Term:
    where = f"lane {number}"
    if not isinstance(values, dict):
        raise SettingsError(f"{where} must be a table: [[lane]]")
    _known(values, KEYS, where)
    examples = values.get("examples", [])
    if not isinstance(examples, list):
        raise SettingsError(f"{where}: examples must be a list of sentences")
    sentences = tuple(_sentence(example, where, "example") for example in examples)
    return Term(
        _sentence(values.get("name"), where, "name"), _sentence(values.get("description"), where, "description"), sentences
    )


def _sentence(value: Any, where: str, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{where}: {what} is {'missing or ' if value is None else ''}empty or no text; write one")
    return value.strip()


def _known(given: Iterable[str], known: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in known:
            raise SettingsError(f"{where} has no {name!r}; {did_you_mean(name, known)}")
