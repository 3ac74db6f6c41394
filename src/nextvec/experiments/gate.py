"""Gates: bounds on the figures of a run, written in TOML."""

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from nextvec.errors import SettingsError, did_you_mean
from nextvec.evaluation.results import OWN_CONTEXT
from nextvec.experiments.metrics import METRICS, Figure, Terms
from nextvec.ranks import Rate

PARTS = ("valid", "test")
BOUNDS = ("at_least", "at_most")


@dataclass(frozen=True)
class Gate:
    """A lower or an upper bound on one figure.

    Attributes:
        name: for the reader.
        metric: one of :data:`~nextvec.experiments.metrics.METRICS`.
        bound: ``at_least`` or ``at_most``; threshold: the bound itself.
        over: the run that a gain is over.
    """

    name: str
    metric: str
    bound: Literal["at_least", "at_most"]
    threshold: float
    over: str | None = None

    def passes(self, figure: Figure) -> bool:
        """Whether the figure keeps the bound; of a figure with an interval, whether its worse end does."""
        low, high = (figure.low, figure.high) if isinstance(figure, Rate) else (figure, figure)
        return low >= self.threshold if self.bound == "at_least" else high <= self.threshold


@dataclass(frozen=True)
class Gates:
    """A file of gates, read and checked."""

    name: str
    terms: Terms
    gates: tuple[Gate, ...]


def shipped() -> dict[str, Path]:
    """Gates that come with the package, by name."""
    folder = Path(str(files("nextvec.experiments") / "gates"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_gates(file: str | Path, over: str | None = None) -> Gates:
    """Gates from a file, or shipped gates by name.

    Args:
        over: the run of every gain that names none.

    Raises:
        SettingsError: no such file, or an unknown name or a wrong value in it.
    """
    path = Path(file)
    if not path.is_file():
        if str(file) not in shipped():
            raise SettingsError(f"there is no file of gates {str(file)!r}; {did_you_mean(str(file), shipped())}")
        path = shipped()[str(file)]
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    try:
        _known(content, ("exam", "gate"), "the file")
        tables = content.get("gate", [])
        if not isinstance(tables, list) or not tables:
            raise SettingsError("no gate; write at least one [[gate]]")
        return Gates(path.stem, _terms(content.get("exam", {})), tuple(_gate(table, over) for table in tables))
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _terms(table: Any) -> Terms:
    if not isinstance(table, dict):
        raise SettingsError("exam must be a table: [exam]")
    _known(table, ("part", "context", "pool", "rows"), "[exam]")
    part = table.get("part", "test")
    if part not in PARTS:
        raise SettingsError(f"part = {part!r}; {did_you_mean(str(part), PARTS)}")
    words: dict[str, int | None] = {"own": OWN_CONTEXT, "all": None}
    context = _whole(table, "context", OWN_CONTEXT, 1, words)
    pool = _whole(table, "pool", 1000, 2, {"all": None})
    return Terms(part, context, pool, _whole(table, "rows", 2000, 1, {}) or 0)


def _gate(table: Any, over: str | None) -> Gate:
    if not isinstance(table, dict):
        raise SettingsError("gate must be a list of tables: [[gate]]")
    _known(table, ("name", "metric", *BOUNDS, "over"), "[[gate]]")
    metric = str(table.get("metric", ""))
    _known([metric], METRICS, "metric")
    bounds = [bound for bound in BOUNDS if bound in table]
    if len(bounds) != 1:
        raise SettingsError(f"gate of {metric}: give one of at_least and at_most, not {' and '.join(bounds) or 'none'}")
    bound: Literal["at_least", "at_most"] = "at_least" if bounds == ["at_least"] else "at_most"
    threshold = _threshold(metric, bound, table[bound])
    takes_over = metric.startswith("gain:")
    if "over" in table and not takes_over:
        raise SettingsError(f"gate of {metric}: over belongs to a gain; did you mean 'gain:hit@5'?")
    named = str(table["over"]) if "over" in table else over
    return Gate(str(table.get("name", metric)), metric, bound, threshold, named if takes_over else None)


def _threshold(metric: str, bound: str, value: Any) -> float:
    least, most = METRICS[metric].least, METRICS[metric].most
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SettingsError(f"gate of {metric}: {bound} = {value!r} is not a number")
    if not least <= value <= most:
        nearest = value / 100 if least <= value / 100 <= most else least if value < least else most
        raise SettingsError(
            f"gate of {metric}: {bound} = {value:g} must be between {least:g} and {most:g}; did you mean {nearest:g}?"
        )
    return float(value)


def _whole(table: Mapping[str, Any], name: str, default: int, least: int, words: Mapping[str, int | None]) -> int | None:
    value = table.get(name)
    if value is None:
        return default
    if isinstance(value, str) and value in words:
        return words[value]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        choices = "".join(f" or {word!r}" for word in words)
        raise SettingsError(f"{name} = {value!r}: must be a whole number of at least {least}{choices}")
    return value


def _known(given: Iterable[str], known: Iterable[str], where: str) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            raise SettingsError(f"{where} has no {name!r}; {did_you_mean(name, names)}")
