"""Requests for predictions, and their answers."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from nextvec.wire.fields import ArmName, Body, Incarnation, K, Limit, Name, Probability, Whole
from nextvec.wire.limits import MOST_BECAUSE, MOST_K, MOST_ROWS

TEXT = "Whether the answer holds the texts of chunks."
ROWS = f"Whether the answer lists the rows that hold each vector, at most {MOST_ROWS}."

Because = Annotated[
    int,
    Meta(
        ge=0,
        le=MOST_BECAUSE,
        description="Rows of the context to name for each vector; 400 if the stable model does not name rows.",
    ),
]


class ContextRequest(Body, frozen=True):
    """The vectors of a request. Exactly one of the fields is given."""

    vectors: Annotated[list[list[float]], Meta(min_length=1)] | UnsetType = UNSET
    rows: Annotated[list[Whole], Meta(min_length=1, description="Rows of the bank.")] | UnsetType = UNSET
    text: Annotated[str, Meta(min_length=1, description="Cut and encoded by the server.")] | UnsetType = UNSET


class PredictQuery(Body, frozen=True):
    """Query parameters of a prediction."""

    k: Limit = K
    text: Annotated[bool, Meta(description=TEXT)] = False
    rows: Annotated[bool, Meta(description=ROWS)] = False
    because: Because = 0


class BatchQuery(Body, frozen=True):
    """Query parameters of predictions for several contexts."""

    lengths: Annotated[str, Meta(description="Vectors of each context: 10,20,30.")]
    k: Limit = K
    text: Annotated[bool, Meta(description=TEXT)] = False
    rows: Annotated[bool, Meta(description=ROWS)] = False
    because: Because = 0


class AppendQuery(Body, frozen=True):
    """Query parameters of an append."""

    seq: (
        Annotated[
            int,
            Meta(ge=1, le=2**62, description="Number of this append: appends so far + 1. A repeated append is applied once."),
        ]
        | UnsetType
    ) = UNSET
    incarnation: (
        Annotated[Incarnation, Meta(description="Refuse the append with 409 if this name now belongs to another session.")]
        | UnsetType
    ) = UNSET
    k: Annotated[int, Meta(ge=0, le=MOST_K, description="0 appends without a prediction.")] = K
    text: Annotated[bool, Meta(description=TEXT)] = False
    rows: Annotated[bool, Meta(description=ROWS)] = False
    because: Because = 0


class RowPart(Body, frozen=True):
    """What one row of the context adds to a score."""

    position: Annotated[int, Meta(ge=0, description="Place of the row in the context, counted from 0 at its start.")]
    part: Annotated[float, Meta(description="In the unit of the score; negative for a row that lowers it.")]


class Reasons(Body, frozen=True):
    """A score as a sum: the parts of the named rows, `others` and `learned`."""

    rows: Annotated[tuple[RowPart, ...], Meta(max_length=MOST_BECAUSE, description="The largest part first.")]
    others: Annotated[float, Meta(description="The part of all other rows of the context.")]
    learned: Annotated[float, Meta(description="The part of no row: constants and learned vectors of the model.")]


class ExpectedVector(Body, frozen=True):
    """One vector that is expected next."""

    row: Annotated[int, Meta(ge=0, description="The first row of the bank that holds this vector.")]
    score: float
    probability: Annotated[
        Probability | None,
        Meta(
            description="That this vector is the next, if the next is a vector of the bank that the context does not hold. "
            "Null from a model without a calibration.",
        ),
    ]
    document: str
    count: Annotated[int, Meta(ge=1, description="Rows of the bank that hold this vector.")]
    item: Annotated[str, Meta(description="The id of the item, where the bank is one of items.")] | UnsetType = UNSET
    text: (
        Annotated[str | None, Meta(description="The chunk of the row, with ?text=1; null where the bank holds vectors only.")]
        | UnsetType
    ) = UNSET
    rows: (
        Annotated[
            tuple[Whole, ...],
            Meta(
                min_length=1,
                max_length=MOST_ROWS,
                description=f"Rows that hold this vector, ascending, with ?rows=1: the first {MOST_ROWS} of count.",
            ),
        ]
        | UnsetType
    ) = UNSET
    because: (
        Annotated[
            Reasons | None,
            Meta(
                description="Rows of the context that the score comes from, with ?because=N; null from a model that names none."
            ),
        ]
        | UnsetType
    ) = UNSET


class Prediction(Body, frozen=True):
    """The vectors that are expected next, and the model that predicted them."""

    expected: Annotated[tuple[ExpectedVector, ...], Meta(description="Distinct vectors, best first.")]
    probability: Annotated[
        Probability | None,
        Meta(description="That the next vector is one of the expected ones: the sum of their probabilities, or null."),
    ]
    arm: ArmName
    model: Name
    reason: Annotated[
        str,
        Meta(
            description="Why this arm and model answered: `no canary, short`, `bucket, long`, `no canary, expert`, "
            "`canary late`, …"
        ),
    ]
    lane: Annotated[str | None, Meta(description="Lane of the context; null on a server without lanes.")]
    digest: Annotated[str, Meta(description="Identifies the weights and their format.")]
    seq: Annotated[Whole | None, Meta(description="Appends so far; null without a session.")]
    length: Annotated[int, Meta(ge=0, description="Vectors so far.")]


class PredictionAnswer(Prediction, frozen=True):
    """A prediction, with the id of its request."""

    request: Annotated[str, Meta(description="Identifies the request in the server's log.")]


class BatchAnswer(Body, frozen=True):
    """One prediction per context, in their order."""

    answers: tuple[Prediction, ...]
    request: Annotated[str, Meta(description="Identifies the request in the server's log.")]
