"""What the ledger says about a route's past: which models were promoted over which, and how its rollouts ended."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextvec.errors import ServingError
from nextvec.rollout.ledger import Ledger
from nextvec.rollout.plan import Phase

PAST = 20  # rollouts listed by :func:`past`


@dataclass(frozen=True)
class Promotion:
    """A rollout that ended with its canary promoted.

    Attributes:
        over: name of the model that was the stable one.
        name, digest: of the model that took its place.
    """

    over: str
    name: str
    digest: str


def identity(name: str, digest: str) -> str:
    """A model in the ledger: the name it is served by, and what its weights are."""
    return f"{name}@{digest}"


def named(model: str) -> tuple[str, str]:
    """Name and digest of :func:`identity`.

    Raises:
        ServingError: it is none.
    """
    name, at, digest = model.rpartition("@")
    if not at or not name:
        raise ServingError(f"{model!r} is not NAME@DIGEST of a model")
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
    """The promotion by which another model stands for ``name`` now; None if ``name`` stands for itself."""
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
        digests: of the weights that the ledger says were promoted, by name; the served weights must be these.
    """

    runs: dict[str, Path]
    long: str | None
    digests: dict[str, str]


def start(
    runs: Mapping[str, Path], long: str | None, experts: Set[str], made: list[Promotion], beside: Callable[[str], Path]
) -> Start:
    """What to open for a command line once the ledger has been followed: promoted models take the places of the old ones.

    So the command of before a promotion starts the server of after it. A model that another stands for is not opened, unless it
    is an expert. Where the first run has nothing to do with the route's promotions, the last promoted model answers.

    Args:
        runs: named on the command line, by name; long: the one of them that answers long contexts.
        experts: names that are needed whatever was promoted over them.
        made: see :func:`promotions`.
        beside: the folder of a run that was not named.

    Raises:
        ServingError: a promoted run is not there.
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
    """How the route's last rollouts ended, the latest first."""
    last = {row.rollout: row for row in ledger.rows()}
    ended = [row for row in reversed(last.values()) if ledger.record(row.rollout).route == route]
    told = [row for row in ended if not ledger.record(row.rollout).active][:PAST]
    return [{"rollout": row.rollout, "state": row.after, "time": row.time, "cause": row.cause} for row in told]
