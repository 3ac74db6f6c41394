"""Four ways to give every row of a bank a lane: by descriptions, by clusters, by labels, by chance."""

# Axes: N rows, D width, L lanes, M documents, R labelled rows.

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from nextvec.bank import Bank
from nextvec.bank.sequences import Rows
from nextvec.encoders import Encoder, load_encoder, truncation
from nextvec.errors import DataError, SettingsError
from nextvec.lanes.clusters import FEWEST, MOST, Clusters, blocks, mean_directions, spherical_kmeans
from nextvec.lanes.labels import NONE, Labels
from nextvec.lanes.store import Anchors, Kind, Lanes, Manifest
from nextvec.lanes.table import DEFAULT, Table
from nextvec.progress import Progress, silent

CALIBRATED_ON = 50_000  # labelled rows that a temperature is fitted to; of more rows, a random sample
STEEPEST = 1e4  # the highest inverse temperature


def by_descriptions(bank: Bank, table: Table = DEFAULT, encoder: Encoder | None = None, labels: Labels | None = None) -> Lanes:
    """Each row gets the lane with the nearest description. ``labels`` of the table's lanes calibrate the confidence.

    An anchor is the mean of its lane's sentences. The bank's mean is not subtracted: if most of a bank is of one
    kind, its mean is of that kind too (`benchmarks/lanes.py` measures both).

    Raises:
        DataError: the bank's encoder is unknown, not installed, or not the one that made the bank; labels of other lanes.
    """
    made = {"encoder": bank.manifest.encoder}
    return _nearest(bank, "descriptions", table.names, _encoded(_encoder(bank, encoder), table), labels, made, table.digest)


def by_clusters(bank: Bank, count: int, seed: int = 0, balanced: bool = False, progress: Progress = silent) -> Lanes:
    """Lanes without text: spherical k-means on the rows.

    Raises:
        SettingsError: fewer than 2 or more than 256 lanes.
        DataError: fewer different rows than lanes.
    """
    found = spherical_kmeans(bank.rows, count, seed, balanced, progress)
    anchors = _of_clusters(found, bank.rows)
    made = {"seed": seed, "balanced": balanced, "iterations": len(found.objective), "objective": found.objective[-1]}
    confidence = anchors.confidence(bank.rows, found.lane)
    return Lanes(found.lane, confidence, anchors, _manifest(bank, "clusters", anchors, False, made))


def cluster_anchors(rows: Rows, count: int, seed: int = 0, balanced: bool = False) -> Anchors:
    """The anchors of :func:`by_clusters` for some rows, such as those of the training documents.

    Raises: as :func:`by_clusters`.
    """
    return _of_clusters(spherical_kmeans(rows, count, seed, balanced), rows)


def description_anchors(bank: Bank, table: Table = DEFAULT, encoder: Encoder | None = None) -> Anchors:
    """The anchors of :func:`by_descriptions`; the bank's rows get no lanes.

    Raises: as :func:`by_descriptions`.
    """
    return _plain(bank.rows, table.names, _encoded(_encoder(bank, encoder), table))


def by_labels(bank: Bank, labels: Labels) -> Lanes:
    """Labelled documents get their label, with confidence 1; other documents get the lane of the nearest mean row.

    Raises:
        DataError: more than 256 lanes.
    """
    if len(labels.names) > MOST:
        raise DataError(f"{len(labels.names)} lanes are named by the labels; at most {MOST} fit")
    given = labels.of_rows(bank)
    labelled = given != NONE
    vectors = mean_directions(bank.rows, given, len(labels.names))
    made = {"labelled_documents": int((labels.lane != NONE).sum())}
    lanes = _nearest(bank, "labels", labels.names, vectors, labels, made)
    lane = np.where(labelled, given, lanes.lane).astype(np.uint8)
    return Lanes(lane, np.where(labelled, np.float16(1), lanes.confidence), lanes.anchors, lanes.manifest)


def by_chance(bank: Bank, count: int, seed: int = 0) -> Lanes:
    """The control: documents in random order, each in the lane that has the fewest rows so far.

    Raises:
        SettingsError: fewer than 2 or more than 256 lanes.
        DataError: fewer documents than lanes.
    """
    if not FEWEST <= count <= MOST:
        raise SettingsError(f"{count} lanes: choose from {FEWEST} to {MOST}")
    if bank.num_documents < count:
        raise DataError(f"the bank has {bank.num_documents} documents, too few for {count} lanes")
    held, of_document = np.zeros(count, np.int64), np.empty(bank.num_documents, np.uint8)
    for m in np.random.default_rng(seed).permutation(bank.num_documents):
        of_document[m] = held.argmin()
        held[of_document[m]] += bank.lengths[m]
    lane = np.repeat(of_document, bank.lengths)
    names = tuple(f"random {k}" for k in range(count))
    anchors = Anchors(names, mean_directions(bank.rows, lane, count), np.zeros(count, np.float32), 1.0)
    confidence = np.ones(len(bank), np.float16)
    return Lanes(lane, confidence, anchors, _manifest(bank, "chance", anchors, False, {"seed": seed}))


def fitted_temperature(scores: Float32[np.ndarray, "R L"], lane: Int64[np.ndarray, " R"]) -> float:
    """The temperature with the highest likelihood (Guo et al. 2017), found by bisection.

    The likelihood is concave in the inverse temperature. Its slope is the score of the true lane minus the expected
    score.
    """
    own = np.take_along_axis(scores, lane[:, None], 1)[:, 0].astype(np.float64)

    def slope(steepness: float) -> float:
        weights = np.exp(steepness * (scores - scores.max(1, keepdims=True)).astype(np.float64))
        return float((own - (weights * scores).sum(1) / weights.sum(1)).mean())

    low, high = 1 / STEEPEST, STEEPEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 1 / low


def _nearest(
    bank: Bank,
    kind: Kind,
    names: tuple[str, ...],
    vectors: Float32[np.ndarray, "L D"],
    labels: Labels | None,
    made: dict[str, Any],
    table: str = "",
) -> Lanes:
    anchors = _plain(bank.rows, names, vectors)
    if labels is not None:
        anchors = replace(anchors, temperature=_calibrated(bank, anchors, labels))
    lane, confidence = anchors.assign(bank.rows)
    return Lanes(lane, confidence, anchors, _manifest(bank, kind, anchors, labels is not None, made, table))


def _plain(rows: Rows, names: tuple[str, ...], vectors: Float32[np.ndarray, "L D"]) -> Anchors:
    anchors = Anchors(names, vectors, np.where(vectors.any(1), np.float32(0), np.float32(2)), 1.0)
    return replace(anchors, temperature=_margin(rows, anchors))


def _of_clusters(found: Clusters, rows: Rows) -> Anchors:
    names = tuple(f"cluster {k}" for k in range(len(found.centres)))
    anchors = Anchors(names, found.centres, found.prices, 1.0)
    return replace(anchors, temperature=_margin(rows, anchors))


def _calibrated(bank: Bank, anchors: Anchors, labels: Labels) -> float:
    _check_names(labels, anchors.names)
    given = labels.of_rows(bank)
    rows = np.flatnonzero(given != NONE)
    if len(rows) > CALIBRATED_ON:
        rows = np.sort(np.random.default_rng(0).choice(rows, CALIBRATED_ON, replace=False))
    return fitted_temperature(anchors.scores(bank.rows[rows]), given[rows])


def _margin(rows: Rows, anchors: Anchors) -> float:
    """The temperature without labels: the mean margin between the best and the second score. Such a margin gives odds of e."""
    total = 0.0
    for _, block in blocks(rows):
        best = np.partition(anchors.scores(block), -2, axis=1)[:, -2:]
        total += float((best[:, 1] - best[:, 0]).sum(dtype=np.float64))
    return max(total / len(rows), 1 / STEEPEST)


def _encoded(encoder: Encoder, table: Table) -> Float32[np.ndarray, "L D"]:
    sentences = [sentence for lane in table.lanes for sentence in lane.sentences]
    lane = np.repeat(np.arange(len(table.lanes)), [len(lane.sentences) for lane in table.lanes])
    encoded = encoder.encode(sentences)
    if (fault := truncation(encoder, encoded.tokens)) is not None:
        raise DataError(f"of the lanes' descriptions, sentence {fault}; shorten it")
    return mean_directions(encoded.rows, lane, len(table.lanes))


def _encoder(bank: Bank, encoder: Encoder | None) -> Encoder:
    if bank.manifest.encoder == "unknown":
        raise DataError(
            "the bank does not say which encoder made its vectors, so no description can be compared with them; "
            "use clusters or labels"
        )
    model = encoder or load_encoder(bank.manifest.encoder)
    if model.fingerprint != bank.manifest.encoder_fingerprint:
        raise DataError(f"the bank was made with {bank.manifest.encoder_fingerprint}; installed is {model.fingerprint}")
    return model


def _check_names(labels: Labels, names: tuple[str, ...]) -> None:
    if labels.names != names:
        raise DataError(f"the labels are of other lanes: {', '.join(labels.names)}; want {', '.join(names)}")


def _manifest(bank: Bank, kind: Kind, anchors: Anchors, calibrated: bool, made: dict[str, Any], table: str = "") -> Manifest:
    m = bank.manifest
    return Manifest(
        kind, m.fingerprint, m.encoder_fingerprint, anchors.names, table, m.rows, m.dim, anchors.temperature, calibrated, made
    )
