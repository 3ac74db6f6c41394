"""Which model answers a request: a pure function of the request, an immutable snapshot and the time."""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal

from nextvec.errors import ServingError

BUCKETS = 10_000
PIN_HEADER, PIN_SCOPE = "x-nextvec-arm", "pin"
UNSURE = "unsure"  # the lane of a context without a clear lane
LONGEST_SALT = 64  # bytes, of a blake2b key

Arm = Literal["stable", "canary"]
ArmReason = Literal["bucket", "pin", "no canary", "lease expired", "no key", "same model"]
ModelReason = Literal["short", "long", "expert", "expert down", "expert too short", "no expert", "unsure lane"]


@dataclass(frozen=True)
class RoutedModel:
    """The facts about a model that routing needs.

    Attributes:
        name: of the model, one per digest.
        reads: how many of the last vectors it can use (trained context, or reach); None without a bound.
    """

    name: str
    reads: int | None = None

    def can_read(self, n_vectors: int) -> bool:
        return self.reads is None or n_vectors <= self.reads


@dataclass(frozen=True)
class Expert:
    """A model for one lane. While it is not healthy, the shared model answers."""

    lane: str
    model: RoutedModel
    healthy: bool = True


@dataclass(frozen=True)
class ArmModels:
    """The models of one arm: ``short`` up to the threshold, ``long`` above it; the expert of a lane has priority over both."""

    short: RoutedModel
    long: RoutedModel
    experts: tuple[Expert, ...] = ()

    def __post_init__(self) -> None:
        lanes = [expert.lane for expert in self.experts]
        if twice := next((lane for lane in lanes if lanes.count(lane) > 1), None):
            raise ServingError(f"lane {twice!r} has two experts; give one")

    def choose(self, n_vectors: int, lane: str | None, threshold: int | None) -> tuple[RoutedModel, ModelReason]:
        """The model for a context of ``n_vectors`` vectors, and the reason."""
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
    """Everything that routing depends on; replaced as a whole by one assignment.

    Attributes:
        epoch: of the rollout's state; higher is newer.
        stable: the models of the control arm.
        canary: the models of the canary arm; None without a rollout.
        weight: percent of the sessions that are assigned to the canary.
        rollout: id, the salt of the buckets; a new rollout assigns the sessions anew.
        deadline: the canary may be chosen until then, in seconds of the reader's ``time.monotonic``. Heartbeats of the
            controller extend it. After the deadline, only stable answers.
        threshold: the longest context, in vectors, that counts as short; None if all contexts do.
    """

    epoch: int
    stable: ArmModels
    canary: ArmModels | None = None
    weight: float = 0.0
    rollout: str = ""
    deadline: float = 0.0
    threshold: int | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            ServingError: a weight outside 0 to 100, an empty or too long salt, or a threshold above what a model reads.
        """
        if not 0 <= self.weight <= 100:
            raise ServingError(f"weight {self.weight:g} is not a percentage; give 0 to 100")
        if self.canary is not None and not 0 < len(self.rollout.encode()) <= LONGEST_SALT:
            raise ServingError(f"rollout id {self.rollout!r} must have 1 to {LONGEST_SALT} bytes")
        for models in (self.stable, self.canary):
            if models is not None and self.threshold is not None:
                _check_threshold(models, self.threshold)


@dataclass(frozen=True)
class Route:
    """The arm and the model of a request.

    Attributes:
        arm, model: a model that reads less than the context gets the last ``model.reads`` vectors.
        arm_reason, model_reason: fixed words, which metrics use as labels.
    """

    arm: Arm
    model: RoutedModel
    arm_reason: ArmReason
    model_reason: ModelReason

    @property
    def reason(self) -> str:
        return f"{self.arm_reason}, {self.model_reason}"

    @property
    def counted(self) -> bool:
        """Whether the request is evidence: its arm was assigned at random, and the models of the arms differ."""
        return self.arm_reason == "bucket"


def bucket(key: str, rollout: str) -> int:
    """The bucket of a key, 0 to :data:`BUCKETS` - 1, the same in every process and on every machine.

    Keyed blake2b (RFC 7693). The bucket does not depend on the weight, so a growing weight moves keys from stable to canary and
    never back.
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
    """The arm and the model of a request. Every input has a result.

    Args:
        key: of the session; equal keys get the same arm. Without a key stable answers, because there is no unit to count.
        n_vectors: length of the context, in vectors.
        lane: of the request, or None.
        headers: names in lower case; ``x-nextvec-arm`` chooses the arm if the caller has the right ``pin``.
        snapshot: the current state of the rollout.
        now: seconds of the clock of ``snapshot.deadline``.
        scopes: rights of the caller's API key.
    """
    arm, why = _arm(key, headers, snapshot, now, scopes)
    stable, stable_why = snapshot.stable.choose(n_vectors, lane, snapshot.threshold)
    if snapshot.canary is None:
        return Route("stable", stable, why, stable_why)
    canary, canary_why = snapshot.canary.choose(n_vectors, lane, snapshot.threshold)
    if why == "bucket" and canary == stable:  # both arms would give the same answer, so it is no evidence
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


def _check_threshold(models: ArmModels, threshold: int) -> None:
    if threshold < 0:
        raise ServingError(f"threshold {threshold} is negative; give it in vectors")
    if not models.short.can_read(threshold):
        raise ServingError(
            f"{models.short.name} reads {models.short.reads} vectors, but the threshold is {threshold}; lower the threshold"
        )
    if not models.long.can_read(threshold + 1):
        raise ServingError(
            f"{models.long.name} reads {models.long.reads} vectors, but must answer above {threshold}; lower the threshold"
        )
