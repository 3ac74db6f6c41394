"""The templates of all pages, and the filters that print their figures."""

from collections.abc import Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from nextvec.ranks import candidates_in_words

Json = Mapping[str, Any]
PAGES = "nextvec.pages"


def templates(package: str = PAGES) -> Environment:
    """The templates of a package, and those of :mod:`nextvec.pages`; a name that a page lacks is an error, never a blank."""
    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, PAGES))])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters.update(percent=_percent, points=_points, range=_range, candidates=candidates_in_words)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(lift: Json) -> str:
    return f"{100 * lift['value']:+.1f}"


def _range(rate: Json, sign: str = "") -> str:
    return f"{100 * rate['low']:{sign}.1f} to {100 * rate['high']:{sign}.1f}"
