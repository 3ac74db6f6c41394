"""The history of a route in the ledger: promotions, and how its rollouts ended."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextvec.errors import ServingError
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.state import Phase

PAST = 20  # rollouts listed by :func:`past`


@dataclass(frozen=True)
class Promotion:
    """A rollout that ended with its canary promoted.

    Attributes:
        over: name of the stable model before.
        name, digest: of the model that replaced it.
    """

    over: str
    name: str
    digest: str


def identity(name: str, digest: str) -> str:
    """A model as the ledger names it: ``NAME@DIGEST``, the name under which it is served and the digest of its weights."""
    return f"{name}@{digest}"


def named(model: str) -> tuple[str, str]:
    """Name and digest of :func:`identity`.

    Raises:
        ServingError: the text has another form.
    """
    name, at, digest = model.rpartition("@")
    if not at or not name:
        raise ServingError(f"{model!r} is not the NAME@DIGEST of a model")
    return name, digest


def promotions(ledger: Ledger, route: str) -> list[Promotion]:
    """The promotions on a route, the earliest first.

    Raises:
        LedgerError: the ledger cannot be read.
    """
    found: list[Promotion] = []
    for row in ledger.rows():
        if row.after == Phase.PROMOTED and ledger.record(row.rollout).route == route:
            terms = ledger.rows(row.rollout)[0].evidence
            found.append(Promotion(named(terms["stable"])[0], *named(terms["canary"])))
    return found


def successor(name: str, made: list[Promotion]) -> Promotion | None:
    """The last promotion in the chain that begins with ``name``; None if ``name`` was not replaced."""
    last: Promotion | None = None
    for promotion in made:
        if promotion.over == (name if last is None else last.name):
            last = promotion
    return last


@dataclass(frozen=True)
class Start:
    """What a server opens when it starts.

    Attributes:
        runs: folders by name; the first one answers.
        long: name of the run that answers long contexts, if any.
        digests: of promoted models, by name, as in the ledger; the opened weights must have these digests.
    """

    runs: dict[str, Path]
    long: str | None
    digests: dict[str, str]


def start(
    runs: Mapping[str, Path], long: str | None, experts: Set[str], made: list[Promotion], beside: Callable[[str], Path]
) -> Start:
    """What a server opens for a command line and the promotions of its route: promoted models replace the old ones.

    So a command line written before a promotion starts the server with the promoted model. A replaced model is not opened,
    unless it is an expert. If no promotion concerns the runs of the command line, the last promoted model answers.

    Args:
        runs: folders of the command line, by name; long: the name of the run that answers long contexts.
        experts: names that are opened in any case.
        made: see :func:`promotions`.
        beside: gives the folder of a run that the command line does not name.

    Raises:
        ServingError: the folder of a promoted run is missing.
    """
    first = next(iter(runs))
    stable, other = successor(first, made), None if long is None else successor(long, made)
    replaced = {name for name, by in ((first, stable), (long, other)) if by is not None} - experts
    if stable is None and made and made[-1].name not in (first, long) and made[-1] != other:
        stable = made[-1]
    answering, answering_long = (by.name if by else name for name, by in ((first, stable), (long, other)))
    wanted = {answering, answering_long} - {None}
    names = [answering, *(name for name in runs if name not in replaced or name in wanted), *filter(None, [answering_long])]
    opened = {name: runs[name] if name in runs else beside(name) for name in dict.fromkeys(names) if name is not None}
    return Start(opened, answering_long, {promotion.name: promotion.digest for promotion in made if promotion.name in wanted})


def past(ledger: Ledger, route: str) -> list[dict[str, Any]]:
    """How the last rollouts of a route ended, the latest first."""
    last = {row.rollout: row for row in ledger.rows()}
    ended = [row for row in reversed(last.values()) if ledger.record(row.rollout).route == route]
    latest = [row for row in ended if not ledger.record(row.rollout).active][:PAST]
    return [{"rollout": row.rollout, "state": row.after, "time": row.time, "cause": row.cause} for row in latest]
