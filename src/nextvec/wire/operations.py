"""Models, rollouts and readiness: what an operator reads and changes."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from nextvec.wire.fields import Body, Name, Whole
from nextvec.wire.limits import MOST_REASON

RolloutVerb = Literal["pause", "resume", "abort", "promote"]  # not "start": its checks need the run's files


class ModelDescription(Body, frozen=True):
    """A model that is served."""

    name: Name
    digest: Annotated[str, Meta(description="Identifies the weights and their format.")]
    dim: Whole
    encoder: Annotated[str, Meta(description="Fingerprint of the encoder whose vectors the model reads.")]
    stable: bool
    names_rows: Annotated[bool, Meta(description="Whether its answers name rows of the context, with ?because=N.")]
    process: Annotated[int | None, Meta(description="Process that computes; null while it is being started again.")]


class ModelList(Body, frozen=True):
    """All models that are served."""

    models: list[ModelDescription]


class PastRollout(Body, frozen=True):
    """A rollout that has ended."""

    rollout: str
    state: str
    time: str
    cause: str


class RolloutList(Body, frozen=True):
    """The rollout in progress, and earlier ones."""

    current: Annotated[
        dict[str, Any] | None, Meta(description="The report: state, steps, evidence, smallest detectable effects.")
    ]
    past: list[PastRollout]
    trouble: Annotated[str | None, Meta(description="A fault of the ledger.")]
    watching: Annotated[bool, Meta(description="Whether this server drives the rollout.")]


class ReasonRequest(Body, frozen=True):
    """Why a person changes a rollout."""

    reason: Annotated[str, Meta(max_length=MOST_REASON)] = ""


class RolloutChange(Body, frozen=True):
    """The state of a rollout after a person has changed it."""

    rollout: Name
    state: str
    epoch: Whole
    warning: Annotated[str | None, Meta(description="Set where the evidence did not suffice for a promotion.")]


class ServerStatus(Body, frozen=True):
    """The answer of a probe."""

    status: Literal["alive", "ready"]
