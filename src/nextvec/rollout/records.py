"""What a ledger holds: entries and rows, the record of a rollout, and a decision about it."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nextvec.errors import ServingError

REPAIR = "restore a copy, or read the remaining rows with export"


class ConflictError(ServingError):
    """A change that the present state does not allow, or that another writer has prevented."""


class LedgerError(ServingError):
    """A ledger that cannot be read or written, or whose rows differ from what was written."""


@dataclass(frozen=True)
class Entry:
    """A change before it is written.

    Attributes:
        before, after: names of the states.
        cause: in words.
        evidence: JSON-able; the basis of the decision.
        actor: a person's key, or the controller.
        ends: ``after`` is terminal, so the route is free for another rollout.
    """

    before: str
    after: str
    cause: str
    evidence: Any
    actor: str
    ends: bool = False


@dataclass(frozen=True)
class Row:
    """A change as it was written. ``hash`` is the SHA-256 of all other fields, ``prev_hash`` of the row before included."""

    seq: int
    rollout: str
    epoch: int
    before: str
    after: str
    cause: str
    evidence: Any
    actor: str
    time: str
    prev_hash: str
    hash: str

    def content_hash(self) -> str:
        parts = [self.seq, self.rollout, self.epoch, self.before, self.after, self.cause, canonical(self.evidence)]
        return hashlib.sha256(canonical([*parts, self.actor, self.time, self.prev_hash]).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        values = {**self.__dict__, "from": self.before, "to": self.after}
        order = ["seq", "rollout", "epoch", "from", "to", "cause", "evidence", "actor", "time", "prev_hash", "hash"]
        return {name: values[name] for name in order}


@dataclass(frozen=True)
class Record:
    """The present state of a rollout.

    Attributes:
        row: the last one, which made this state.
        route: of the rollout; active: whether the rollout has not ended.
        holder, token: the process that holds the rollout and its fencing token; ``""`` after a release.
        beat: number of heartbeats; every tick of the holder adds one.
        watched: seconds for which a holder has watched this state; last_unit: ``watched`` when the last unit arrived.
        evidence: JSON-able, with all reports so far.
        slowest: the oldest epoch that a router still uses; None without routers.
    """

    row: Row
    route: str
    active: bool
    holder: str
    token: int
    beat: int
    watched: float
    last_unit: float
    evidence: Any
    slowest: int | None

    @property
    def epoch(self) -> int:
        return self.row.epoch

    @property
    def state(self) -> str:
        return self.row.after


@dataclass(frozen=True)
class Decision:
    """The result of one tick: new sums for the record, and an entry or None."""

    watched: float
    last_unit: float
    evidence: Any
    entry: Entry | None


Decide = Callable[[Record, list[Any]], Decision]
"""Called inside the transaction with the record and the new reports. It must be pure, because it may be called again."""


def canonical(value: Any) -> str:
    """JSON in one form, so that equal values have equal hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
