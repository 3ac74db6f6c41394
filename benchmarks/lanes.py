"""Do lanes say what a text is about? Descriptions, clusters and chance, against what each text is known to be.

    python benchmarks/lanes.py ../shared/data [--seeds 3] [--keep FOLDER]

Builds one bank of all `banks/*` (vectors that somebody has embedded already, their texts beside them), and labels
documents by the set they come from: novels are Literature, court transcripts Law, programming books and proposals
Software, speeches Politics; encyclopedia articles are of all kinds and get no label. Such labels are weak: among the
novels lie Plato and a book on aeroplanes, and a chunk of a hearing may be about anything.
"""

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nextvec.bank import Bank, BankWriter, VectorDocument
from nextvec.encoders import Encoder, load_encoder
from nextvec.lanes import (
    DEFAULT,
    Agreement,
    Labels,
    LaneCensus,
    Lanes,
    agreement,
    by_chance,
    by_clusters,
    by_descriptions,
    lane_census,
    read_labels,
)
from nextvec.lanes.assign import fitted_temperature
from nextvec.lanes.census import calibration_error
from nextvec.lanes.labels import NONE
from table import show

LANES = {
    "classic_books": "Literature",
    "eltec_eng": "Literature",
    "pg_books": "Literature",
    "python_peps": "Software",
    "scotus_arguments": "Law",
    "tech_books": "Software",
    "us_speeches": "Politics",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="folder with banks/ and text/")
    parser.add_argument("--seeds", type=int, default=3, help="of clusters and chance")
    parser.add_argument("--keep", type=Path, help="write all.bank and labels.csv there (a folder that is thrown away)")
    arguments = parser.parse_args()
    encoder = load_encoder()
    with tempfile.TemporaryDirectory() as scratch:
        place = arguments.keep or Path(scratch)
        bank = build(arguments.data, place / "all.bank", encoder)
        labels = read_labels(write_labels(bank, place / "labels.csv"), bank, DEFAULT.names)
        compare(bank, labels, encoder, arguments.seeds)


def build(data: Path, target: Path, encoder: Encoder) -> Bank:
    with BankWriter(
        target, encoder=encoder.name, encoder_fingerprint=encoder.fingerprint, dim=encoder.dim, source=data.name, text=True
    ) as writer:
        for source in sorted((data / "banks").iterdir()):
            vectors, spans = (np.load(source / f"{name}.npy", mmap_mode="r") for name in ("vectors", "spans"))
            with open(source / "documents.csv", encoding="utf-8") as lines:
                for entry in csv.DictReader(lines):
                    rows = slice(int(entry["first_row"]), int(entry["first_row"]) + int(entry["rows"]))
                    name, text = entry["path"], (data / "text" / entry["path"]).read_text(encoding="utf-8")
                    writer.append(VectorDocument(name, Path(name).stem, vectors[rows], text, spans[rows]))
        return writer.finish()


def write_labels(bank: Bank, path: Path) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("document", "lane"))
        writer.writerows((name, LANES[name.split("/")[0]]) for name in bank.ids if name.split("/")[0] in LANES)
    return path


def compare(bank: Bank, labels: Labels, encoder: Encoder, seeds: int) -> None:
    described = by_descriptions(bank, encoder=encoder, labels=labels)
    ways = {"descriptions": described}
    for seed in range(seeds):
        ways[f"k-means, seed {seed}"] = by_clusters(bank, 16, seed)
        ways[f"k-means, balanced, seed {seed}"] = by_clusters(bank, 16, seed, balanced=True)
        ways[f"random, seed {seed}"] = by_chance(bank, 16, seed)
    counted = {name: lane_census(lanes, bank) for name, lanes in ways.items()}
    agreed = {name: agreement(lanes, bank, labels) for name, lanes in ways.items()}
    show_census(bank, counted["descriptions"], described)
    show_agreement(counted, agreed)
    for name in ("descriptions", "k-means, balanced, seed 0", "random, seed 0"):
        show_confusion(name, agreed[name])
    show_centred(bank, described, labels)
    show_calibration(bank, described, labels)


def show_census(bank: Bank, counted: LaneCensus, lanes: Lanes) -> None:
    rows = [
        (
            lane.name,
            f"{lane.rows:,}",
            f"{lane.share:.1%}",
            f"{lane.documents:,}",
            f"{lane.unsure:.0%}",
            "starved" * lane.starved,
        )
        for lane in counted.lanes
    ]
    of_document, _ = lanes.of_documents(bank)
    books = [m for m, name in enumerate(bank.ids) if LANES.get(name.split("/")[0]) == "Literature"]
    elsewhere = [f"{bank.documents[m][1]}: {lanes.names[of_document[m]]}" for m in books if of_document[m] != 8]
    note = (
        f"{len(bank):,} chunks of {bank.num_documents} documents · entropy {counted.entropy:.2f} bits, "
        f"{counted.evenness:.0%} of even · unsure {counted.unsure:.1%}\nbooks not in Literature: {'; '.join(elsewhere)}"
    )
    show("Census of the 16 domains", ("lane", "chunks", "share", "documents", "unsure", ""), rows, note)


def show_agreement(counted: dict[str, LaneCensus], agreed: dict[str, Agreement]) -> None:
    rows: list[Sequence[str]] = []
    for name, found in agreed.items():
        shares = counted[name]
        rows.append(
            (
                name,
                str(found.chunks),
                str(found.balanced),
                str(found.documents),
                f"{shares.evenness:.0%}",
                f"{max(lane.share for lane in shares.lanes):.1%}",
                str(len(shares.starved)),
            )
        )
    columns = ("lanes", "right lane, chunks", "every label alike", "documents", "entropy", "largest", "starved")
    first = agreed["descriptions"]
    present = sum(any(row) for row in first.confusion)
    note = (
        f"one lane for all would get {first.largest:.1%} of the chunks, {1 / present:.0%} with every label alike; "
        "95 % intervals by document\nclusters and random lanes are named by the commonest label of the other half of documents"
    )
    show("Agreement with weak labels", columns, rows, note)


def show_confusion(name: str, found: Agreement) -> None:
    present = [c for c, row in enumerate(found.confusion) if any(row)]
    rows = [(lane, *(f"{found.confusion[c][k]:,}" for c in present)) for k, lane in enumerate(found.lanes)]
    show(f"Chunks by lane and label: {name}", ("lane", *(found.labels[c] for c in present)), rows, "")


def show_centred(bank: Bank, lanes: Lanes, labels: Labels) -> None:
    """The same anchors, with a mean taken off rows and anchors or not."""
    given = labels.of_rows(bank)
    judged = np.flatnonzero(given != NONE)
    rows, truth, anchors = bank.rows[judged].astype(np.float32), given[judged], lanes.anchors.vectors
    means = {
        "nothing": np.zeros(bank.dim, np.float32),
        "the mean row": bank.rows.astype(np.float32).mean(0),
        "the mean document": np.stack([bank.document(m).astype(np.float32).mean(0) for m in range(bank.num_documents)]).mean(0),
    }
    table: list[Sequence[str]] = []
    for name, mean in means.items():
        right = (unit(rows - mean) @ unit(anchors - mean).T).argmax(1) == truth
        recalls = [right[truth == label].mean() for label in np.unique(truth)]
        table.append((name, f"{right.mean():.1%}", f"{np.mean(recalls):.1%}"))
    show("What is taken off rows and anchors", ("mean", "right lane, chunks", "every label alike"), table, "")


def show_calibration(bank: Bank, lanes: Lanes, labels: Labels) -> None:
    """Temperatures fitted to the labels of one half of the documents, judged on the other half."""
    given = labels.of_rows(bank)
    judged = np.flatnonzero(given != NONE)
    scores, truth = lanes.anchors.scores(bank.rows[judged]), given[judged]
    half = np.random.default_rng(0).permutation(bank.num_documents)[bank.document_of(judged)] % 2
    table: list[Sequence[str]] = []
    for h in range(2):
        temperature, other = fitted_temperature(scores[half == h], truth[half == h]), half != h
        weights = np.exp((scores[other] - scores[other].max(1, keepdims=True)) / temperature)
        confidence, right = 1 / weights.sum(1).astype(np.float64), scores[other].argmax(1) == truth[other]
        sure = confidence >= 0.5
        table.append(
            (
                f"half {h}",
                f"{temperature:.3f}",
                f"{confidence.mean():.1%}",
                f"{right.mean():.1%}",
                f"{calibration_error(confidence, right):.1%}",
                f"{right[sure].mean():.1%} of {sure.mean():.0%}",
            )
        )
    columns = ("fitted to", "temperature", "confidence", "accuracy", "calibration error", "accuracy where sure")
    show("Confidence on documents it was not fitted to", columns, table, "")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
