"""Which model answers: a pure function of the request, an immutable snapshot and the time."""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal

from nextvec.errors import ServingError

BUCKETS = 10_000
PIN_HEADER, PIN_SCOPE = "x-nextvec-arm", "pin"
UNSURE = "unsure"  # no lane in particular
LONGEST_SALT = 64  # bytes, of a blake2b key

Arm = Literal["stable", "canary"]
ArmReason = Literal["bucket", "pin", "no canary", "lease expired", "no key", "same model"]
ModelReason = Literal["short", "long", "expert", "expert down", "expert too short", "no expert", "unsure lane"]


@dataclass(frozen=True)
class Served:
    """A model as a router sees it.

    Attributes:
        name: of the model, one per digest.
        reads: how many of the last vectors it can make use of (trained context, or reach); None where there is no bound.
    """

    name: str
    reads: int | None = None

    def can_read(self, n_vectors: int) -> bool:
        return self.reads is None or n_vectors <= self.reads


@dataclass(frozen=True)
class Expert:
    """A model for one lane; while it is not healthy the shared model answers."""

    lane: str
    model: Served
    healthy: bool = True


@dataclass(frozen=True)
class Lineup:
    """What one arm answers with: ``short`` up to the threshold, ``long`` above it, before both the expert of a lane."""

    short: Served
    long: Served
    experts: tuple[Expert, ...] = ()

    def __post_init__(self) -> None:
        lanes = [expert.lane for expert in self.experts]
        if twice := next((lane for lane in lanes if lanes.count(lane) > 1), None):
            raise ServingError(f"lane {twice!r} has two experts; give it one")

    def choose(self, n_vectors: int, lane: str | None, threshold: int | None) -> tuple[Served, ModelReason]:
        """The model for a context of so many vectors, and why."""
        is_short = threshold is None or n_vectors <= threshold
        shared = self.short if is_short else self.long
        if lane is None:
            return shared, "short" if is_short else "long"
        if lane == UNSURE:
            return shared, "unsure lane"
        expert = next((expert for expert in self.experts if expert.lane == lane), None)
        if expert is None:
            return shared, "no expert"
        if not expert.healthy:
            return shared, "expert down"
        if not expert.model.can_read(n_vectors):
            return shared, "expert too short"
        return expert.model, "expert"


@dataclass(frozen=True)
class Snapshot:
    """All that routing depends on, swapped whole by one assignment.

    Attributes:
        epoch: of the rollout's state that it was made from; higher is newer.
        stable: the line-up that answers unless the canary does.
        canary: the line-up on trial; None where no rollout may be routed to.
        weight: percent of the keys that go to the canary.
        rollout: its id, the salt of the buckets: a new rollout deals the keys anew.
        deadline: until when the canary may be chosen, in seconds of the reader's ``time.monotonic``. Whoever watches the
            rollout keeps moving it; if nobody does, new decisions go to stable.
        threshold: the longest context, in vectors, that counts as short; None where all do.
    """

    epoch: int
    stable: Lineup
    canary: Lineup | None = None
    weight: float = 0.0
    rollout: str = ""
    deadline: float = 0.0
    threshold: int | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ServingError: a weight that is no percentage, a salt that is empty or too long, or a threshold that a model
                cannot read.
        """
        if not 0 <= self.weight <= 100:
            raise ServingError(f"weight {self.weight:g} is not a percentage; give 0 to 100")
        if self.canary is not None and not 0 < len(self.rollout.encode()) <= LONGEST_SALT:
            raise ServingError(f"rollout id {self.rollout!r} must have 1 to {LONGEST_SALT} bytes")
        for lineup in (self.stable, self.canary):
            if lineup is not None and self.threshold is not None:
                _check_threshold(lineup, self.threshold)


@dataclass(frozen=True)
class Route:
    """An answer to "who answers?".

    Attributes:
        arm, model: who. A model that reads less than the context is given the last ``model.reads`` vectors.
        arm_reason, model_reason: why, in words that can label a metric.
    """

    arm: Arm
    model: Served
    arm_reason: ArmReason
    model_reason: ModelReason

    @property
    def reason(self) -> str:
        return f"{self.arm_reason}, {self.model_reason}"

    @property
    def counted(self) -> bool:
        """Whether the request is evidence: only a coin may have chosen its arm, and only where the arms differ."""
        return self.arm_reason == "bucket"


def bucket(key: str, rollout: str) -> int:
    """Where a key lies among :data:`BUCKETS`, the same in every process and on every machine.

    Keyed blake2b (RFC 7693). The bucket does not depend on the weight, so buckets nest: a growing weight moves keys from
    stable to canary and never back.
    """
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=rollout.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def route(
    key: str,
    n_vectors: int,
    lane: str | None,
    headers: Mapping[str, str],
    snapshot: Snapshot,
    *,
    now: float,
    scopes: Set[str] = frozenset(),
) -> Route:
    """Who answers a request; every input has an answer.

    Args:
        key: of the session; equal keys go to equal arms. Without one there is no unit to count, so stable answers.
        n_vectors: length of the context, in vectors.
        lane: of the request, or None.
        headers: names in lower case; ``x-nextvec-arm`` pins the arm where the caller may do so.
        snapshot: what is served.
        now: seconds of the clock that ``snapshot.deadline`` is on.
        scopes: of the caller's API key; only ``pin`` matters here.
    """
    arm, why = _arm(key, headers, snapshot, now, scopes)
    stable, stable_why = snapshot.stable.choose(n_vectors, lane, snapshot.threshold)
    if snapshot.canary is None:
        return Route("stable", stable, why, stable_why)
    canary, canary_why = snapshot.canary.choose(n_vectors, lane, snapshot.threshold)
    if why == "bucket" and canary == stable:  # such a request would only dilute the comparison
        return Route("stable", stable, "same model", stable_why)
    return Route(arm, canary, why, canary_why) if arm == "canary" else Route(arm, stable, why, stable_why)


def _arm(key: str, headers: Mapping[str, str], snapshot: Snapshot, now: float, scopes: Set[str]) -> tuple[Arm, ArmReason]:
    pinned = headers.get(PIN_HEADER) if PIN_SCOPE in scopes else None
    if pinned == "stable":
        return "stable", "pin"
    if snapshot.canary is None:
        return "stable", "no canary"
    if now >= snapshot.deadline:
        return "stable", "lease expired"
    if pinned == "canary":
        return "canary", "pin"
    if not snapshot.weight:
        return "stable", "no canary"
    if not key:
        return "stable", "no key"
    chosen = bucket(key, snapshot.rollout) < round(snapshot.weight * BUCKETS / 100)
    return ("canary" if chosen else "stable"), "bucket"


def _check_threshold(lineup: Lineup, threshold: int) -> None:
    if threshold < 0:
        raise ServingError(f"threshold {threshold} is negative; give it in vectors")
    if not lineup.short.can_read(threshold):
        raise ServingError(
            f"{lineup.short.name} reads {lineup.short.reads} vectors, not the threshold's {threshold}; lower the threshold"
        )
    if not lineup.long.can_read(threshold + 1):
        raise ServingError(
            f"{lineup.long.name} reads {lineup.long.reads} vectors, yet is to answer above {threshold}; lower the threshold"
        )
