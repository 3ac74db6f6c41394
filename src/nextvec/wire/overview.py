"""The dashboard's data."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, UnsetType, field

from nextvec.wire.fields import Body, Whole
from nextvec.wire.operations import PastRollout
from nextvec.wire.sessions import ListedSession

Seconds = Annotated[float, Meta(ge=0)]


class OverviewQuery(Body, frozen=True):
    """Query parameters of the overview."""

    documents: Annotated[bool, Meta(description="Whether the answer lists documents of the bank.")] = False


class ServerState(Body, frozen=True):
    """The process."""

    version: str
    ready: bool
    trouble: Annotated[str | None, Meta(description="Why the server is not ready.")]
    started: str
    uptime: Seconds


class ServedModel(Body, frozen=True):
    """A model, as the dashboard names it."""

    name: str
    digest: str
    stable: bool
    weights: Annotated[str, Meta(description="Format of the weights in memory.")]
    names_rows: Annotated[bool, Meta(description="Whether its answers name rows of the context, with ?because=N.")]


class BankDescription(Body, frozen=True):
    """The bank whose rows the stable model predicts."""

    rows: Whole
    documents: Whole
    dim: Whole
    encoder: str
    text: bool


class SessionLoad(Body, frozen=True):
    """The sessions together."""

    open: Whole
    bytes: Annotated[int, Meta(ge=0, description="Contexts on disk.")]
    state_bytes: Annotated[int, Meta(ge=0, description="Model states in memory.")]
    recent: Annotated[list[ListedSession], Meta(description="The latest requests first.")]


class LoadFigures(Body, frozen=True):
    """Answers in one interval, and how long they took."""

    answers: Whole
    refused: Annotated[int, Meta(ge=0, description="429, 503 and 504.")]
    failed: Annotated[int, Meta(ge=0, description="Faults of the server.")]
    p50: Seconds | None
    p95: Seconds | None
    p99: Seconds | None


class LoadPoint(LoadFigures, frozen=True, array_like=True):
    """Answers, refused, failed, P50, P95 and P99 of one interval, as an array."""


class Histogram(Body, frozen=True):
    """Answers by the time that they took."""

    seconds: Annotated[int, Meta(ge=0, description="Length of the interval.")]
    edges: Annotated[list[float], Meta(description="Seconds at which bars begin, and the end of the last bar.")]
    counts: list[Whole]
    within: Annotated[float | None, Meta(description="Share of the answers within the budget.")]
    p95: Seconds | None


class Load(Body, frozen=True):
    """Requests of the last minutes."""

    queue: Annotated[int, Meta(ge=0, description="Requests that wait.")]
    budget: Annotated[float, Meta(description="Seconds that a request may wait.")]
    rate: Annotated[float, Meta(description="Answers per second.")]
    minute: LoadFigures
    step: Annotated[int, Meta(description="Seconds of a point.")]
    points: Annotated[list[LoadPoint], Meta(description="The oldest first.")]
    histogram: Histogram


class LaneState(Body, frozen=True):
    """One lane since the start of the server."""

    lane: str
    expert: Annotated[str | None, Meta(description="Model that answers this lane; null where the shared model does.")]
    up: Annotated[bool | None, Meta(description="Whether requests go to the expert; null without one.")]
    answers: Whole
    failures: Whole
    p95: Seconds | None
    labels: Whole
    hits: Whole


class LadderStop(Body, frozen=True):
    """One step of a rollout's plan."""

    name: str
    weight: Annotated[float, Meta(description="Percent of the sessions that the canary answers.")]
    units: Annotated[int, Meta(ge=0, description="Sessions that the step needs.")]
    seconds: Annotated[float, Meta(description="Time that the step needs at least.")]


class Likelihood(Body, frozen=True):
    """Evidence for one verdict."""

    log_e: Annotated[float, Meta(description="Logarithm of the e-value.")]
    bound: Annotated[float, Meta(description="The verdict is reached here.")]


class ArmCount(Body, frozen=True):
    """Sessions of one arm."""

    units: Whole
    bad: Whole


class StreamState(Body, frozen=True):
    """The evidence of one stream of events."""

    stream: str
    verdict: str
    worse: Likelihood
    ok: Likelihood
    arms: dict[str, ArmCount]
    pairs: Annotated[int, Meta(ge=0, description="Mirrored sessions.")]


class RolloutState(Body, frozen=True):
    """The rollout in progress, as the dashboard draws it."""

    rollout: str
    state: str
    ended: bool
    stable: str
    canary: str
    parent: str | None
    steps: list[dict[str, Any]]
    detectable: Annotated[list[dict[str, Any]], Meta(description="Smallest detectable effects.")]
    next: Annotated[dict[str, Any], Meta(description="What the next step waits for.")]
    cause: Annotated[str | None, Meta(description="Why it ended.")]
    harm: Annotated[float, Meta(description="Multiple of the failure rate that the plan detects.")]
    gated: Annotated[bool, Meta(description="Whether a person decides each step.")]
    weight: float
    paused: bool
    down: Annotated[bool, Meta(description="Whether the canary was rejected or is rolled back.")]
    ladder: list[LadderStop]
    at: Annotated[int, Meta(description="Last step of the ladder that it reached; -1 for a draft.")]
    seen: Annotated[int, Meta(ge=0, description="Sessions at this step.")]
    streams: list[StreamState]


class RolloutOverview(Body, frozen=True):
    """The rollout in progress, and earlier ones."""

    current: RolloutState | None
    past: list[PastRollout]
    trouble: Annotated[str | None, Meta(description="A fault of the ledger.")]
    watching: Annotated[bool, Meta(description="Whether this server drives the rollout.")]


class Interval(Body, frozen=True):
    """A rate with its 95 % interval."""

    value: float
    low: float
    high: float


class Rate(Interval, frozen=True):
    """A rate of n trials with its 95 % interval."""

    n: Whole


class CandidateCount(Body, frozen=True):
    """Candidates of a prediction: the least and the most of any row."""

    least: Whole
    most: Whole


class ExamResult(Body, frozen=True):
    """The result of one evaluation of the present weights."""

    exam: str
    context: Annotated[int | None, Meta(description="Vectors of context; null for all of it.")]
    pool: int | str
    candidates: CandidateCount
    rows: Whole
    documents: Whole
    hit5: Rate = field(name="hit@5")
    chance: float


class RunState(Body, frozen=True):
    """A run that is served: settings and evaluation results."""

    name: str
    trouble: Annotated[str | None, Meta(description="Why its folder cannot be read.")] = None
    recipe: str | None = None
    model: str | None = None
    context: int | None = None
    updates: int | None = None
    kept: Annotated[int | None, Meta(description="The update whose weights were kept.")] = None
    valid: Annotated[Interval | None, Meta(description="Hit@5 on the validation documents, while training.")] = None
    exams: list[ExamResult] = field(default_factory=list[ExamResult])


class DocumentRows(Body, frozen=True):
    """A document of the bank."""

    title: str
    first: Annotated[int, Meta(ge=0, description="Its first row.")]
    rows: Whole


class Overview(Body, frozen=True):
    """Everything that the dashboard shows."""

    server: ServerState
    models: list[ServedModel]
    bank: BankDescription
    sessions: SessionLoad
    load: Load
    lanes: Annotated[list[LaneState] | None, Meta(description="Null on a server without lanes.")]
    rollout: Annotated[RolloutOverview | None, Meta(description="Null on a server that takes part in no rollouts.")]
    runs: list[RunState]
    documents: Annotated[list[DocumentRows], Meta(description="The first documents, with ?documents=1.")] | UnsetType = UNSET
