"""Census of lanes: their shares of a bank, and their agreement with labels."""

# Axes: N rows, M documents, L lanes, C labels, R labelled rows.

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from nextvec.bank import Bank
from nextvec.errors import DataError
from nextvec.lanes.labels import NONE, Labels
from nextvec.lanes.store import Lanes
from nextvec.ranks import Rate, clustered_rate

UNSURE = 0.5  # below this confidence, another lane is more likely
STARVED = 0.01  # of the rows
NEEDED = 1_000  # rows; with fewer, recipes do not make the model smaller
BINS = 15


@dataclass(frozen=True)
class LaneShare:
    """The rows and documents of one lane.

    Attributes:
        rows, documents: how many; share, document_share: of all.
        confidence: the mean; unsure: the share of its rows with a confidence below one half.
        starved: fewer than 1 % of the rows, or than an expert needs.
        examples: the row with the highest confidence of each of a few documents.
    """

    name: str
    rows: int
    share: float
    documents: int
    document_share: float
    confidence: float
    unsure: float
    starved: bool
    examples: tuple[int, ...]


@dataclass(frozen=True)
class LaneCensus:
    """What :func:`lane_census` counts.

    Attributes:
        lanes: in their order.
        entropy: of the shares of rows, in bits; evenness: as a share of log2 of the number of lanes.
        unsure: the share of all rows with a confidence below one half.
    """

    lanes: tuple[LaneShare, ...]
    entropy: float
    evenness: float
    unsure: float

    @property
    def starved(self) -> tuple[str, ...]:
        return tuple(lane.name for lane in self.lanes if lane.starved)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "starved": self.starved}


@dataclass(frozen=True)
class Agreement:
    """The agreement of lanes with labels.

    Attributes:
        chunks, documents: the share with the right lane; intervals resample documents.
        balanced: the share of chunks with the right lane, where every label has the same weight.
        largest: the share of chunks with the commonest label, which a single lane for all would get.
        calibration_error: the mean distance of confidence and accuracy over 15 bins (Naeini et al. 2015), or None for
            lanes without the labels' names.
        labels, lanes: names; confusion: [labels, lanes], chunks of each label in each lane.
        named: for lanes without the labels' names, two labels of each lane, one for each half of the documents: the most
            common label of the lane's chunks in the other half.
    """

    chunks: Rate
    documents: Rate
    balanced: Rate
    largest: float
    calibration_error: float | None
    labels: tuple[str, ...]
    lanes: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    named: tuple[tuple[str, str], ...] | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def lane_census(lanes: Lanes, bank: Bank, needed: int = NEEDED, examples: int = 2) -> LaneCensus:
    """Count the rows and documents of each lane; a lane of fewer than ``needed`` rows is starved."""
    count = len(lanes.names)
    of_document, _ = lanes.of_documents(bank)
    rows, documents = np.bincount(lanes.lane, minlength=count), np.bincount(of_document, minlength=count)
    unsure = lanes.confidence < UNSURE
    confidence = np.bincount(lanes.lane, lanes.confidence, count) / np.maximum(rows, 1)
    unsure_rows = np.bincount(lanes.lane, unsure, count) / np.maximum(rows, 1)
    shares = tuple(
        LaneShare(
            name,
            int(rows[k]),
            float(rows[k] / len(bank)),
            int(documents[k]),
            float(documents[k] / bank.num_documents),
            float(confidence[k]),
            float(unsure_rows[k]),
            bool(rows[k] < max(STARVED * len(bank), needed)),
            _examples(lanes, bank, k, examples),
        )
        for k, name in enumerate(lanes.names)
    )
    entropy = _entropy(rows / len(bank))
    return LaneCensus(shares, entropy, entropy / np.log2(count).item() if count > 1 else 0.0, float(unsure.mean()))


def agreement(lanes: Lanes, bank: Bank, labels: Labels) -> Agreement:
    """The agreement of lanes with labels of the same names; clusters and random lanes are compared with any labels.

    Clusters and random lanes are named by the most common label of their chunks in the *other* half of the documents,
    so that no document contributes to the name that it is compared with.

    Raises:
        DataError: no document has a label, or lanes of a table are compared with labels of other lanes.
    """
    given = labels.of_rows(bank)
    labelled = np.flatnonzero(given != NONE)
    if not len(labelled):
        raise DataError("no document of the bank has a label; there is nothing to compare the lanes with")
    anonymous = lanes.manifest.kind in ("clusters", "chance")
    if not anonymous and labels.names != lanes.names:
        raise DataError(f"the labels name {', '.join(labels.names)}; the lanes are {', '.join(lanes.names)}")
    truth, owner = given[labelled], bank.document_of(labelled)
    of_document, _ = lanes.of_documents(bank)
    names = _named(lanes, truth, labelled, owner, bank.num_documents) if anonymous else None
    half = _halves(bank.num_documents)
    found = _as_labels(lanes.lane[labelled], half[owner], names)
    right = found == truth
    judged = np.flatnonzero(labels.lane != NONE)
    right_documents = _as_labels(of_document[judged], half[judged], names) == labels.lane[judged]
    counts = np.bincount(truth, minlength=len(labels.names))
    weight = len(truth) / ((counts > 0).sum() * counts[truth])
    confusion = np.zeros((len(labels.names), len(lanes.names)), np.int64)
    np.add.at(confusion, (truth, lanes.lane[labelled]), 1)
    return Agreement(
        clustered_rate(right.astype(np.float64), owner),
        clustered_rate(right_documents.astype(np.float64), judged),
        clustered_rate(right * weight, owner),
        float(counts.max() / len(truth)),
        None if anonymous else calibration_error(lanes.confidence[labelled].astype(np.float64), right),
        labels.names,
        lanes.names,
        tuple(map(tuple, confusion.tolist())),
        None if names is None else tuple((labels.names[a], labels.names[b]) for a, b in names.T.tolist()),
    )


def calibration_error(confidence: Float64[np.ndarray, " R"], right: Bool[np.ndarray, " R"]) -> float:
    """The expected distance between confidence and accuracy over 15 bins of equal width, weighted by their rows."""
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, confidence - right, BINS)
    return float(np.abs(gaps).sum() / len(right))


def _as_labels(
    lane: UInt8[np.ndarray, " R"], half: Int64[np.ndarray, " R"], names: Int64[np.ndarray, "2 L"] | None
) -> Int64[np.ndarray, " R"]:
    return lane.astype(np.int64) if names is None else names[half, lane]


def _named(
    lanes: Lanes, truth: Int64[np.ndarray, " R"], rows: Int64[np.ndarray, " R"], owner: Int64[np.ndarray, " R"], documents: int
) -> Int64[np.ndarray, "2 L"]:
    """For each half and lane, the most common label in the other half; where the lane has no rows there, that of all rows."""
    half, names = _halves(documents)[owner], np.empty((2, len(lanes.names)), np.int64)
    for h in range(2):
        votes = np.zeros((len(lanes.names), int(truth.max()) + 1))
        np.add.at(votes, (lanes.lane[rows][half != h], truth[half != h]), 1)
        votes += votes.sum(0) / (votes.sum() + 1)  # less than one vote, so that it decides only for lanes without votes
        names[h] = votes.argmax(1)
    return names


def _halves(documents: int) -> Int64[np.ndarray, " M"]:
    half = np.empty(documents, np.int64)
    half[np.random.default_rng(0).permutation(documents)] = np.arange(documents) % 2
    return half


def _entropy(shares: Float64[np.ndarray, " L"]) -> float:
    held = shares[shares > 0]
    return float(np.abs(-(held * np.log2(held)).sum()))


def _examples(lanes: Lanes, bank: Bank, lane: int, count: int) -> tuple[int, ...]:
    """The row with the highest confidence of each of some documents; among equal ones, a random row."""
    rows = np.flatnonzero(lanes.lane == lane)
    order = np.lexsort((np.random.default_rng(0).permutation(len(rows)), -lanes.confidence[rows]))
    rows = rows[order]
    _, first = np.unique(bank.document_of(rows), return_index=True)
    return tuple(rows[np.sort(first)[:count]].tolist())
