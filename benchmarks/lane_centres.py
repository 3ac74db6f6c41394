"""What a lane knows that the context does not say: the strongest untrained predictor, centred lane by lane.

    python benchmarks/lane_centres.py BANK [LABELS]

An exponential mean (0.6) of up to 256 vectors before a row of the valid
documents, less a centre: the mean of all training rows, or that of the
training rows of one lane. The lane is that of the mean itself, among k-means
clusters of the training rows, or one given for the document by a file of
labels, as an oracle. If lanes held what the context does not, a lane's own
centre would be the better one.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from nextvec.bank import Bank
from nextvec.evaluation import Exam
from nextvec.lanes import by_labels, cluster_anchors, read_labels
from nextvec.lanes.clusters import mean_directions
from nextvec.windows import rows_of, split
from table import show

DECAY, CONTEXT, POOL, ROWS = 0.6, 256, 1000, 2000
COUNTS = (4, 16, 64)
SHRINK = (0.5, 0.8, 1.0)


def context_means(bank: Bank, rows: np.ndarray) -> np.ndarray:
    """[R, D] weighted means of what came before each row; not of unit length."""
    first = bank.offsets[bank.document_of(rows)]
    means = np.empty((len(rows), bank.dim), np.float32)
    for n, (row, start) in enumerate(zip(rows.tolist(), first.tolist(), strict=True)):
        x = bank.rows[max(start, row - CONTEXT) : row].astype(np.float32)
        weights = DECAY ** np.arange(len(x) - 1, -1, -1)
        means[n] = weights @ x / weights.sum()
    return means


def centres(rows: np.ndarray, lane: np.ndarray, count: int) -> np.ndarray:
    """[L, D] mean row of each lane, of its own length."""
    directions = mean_directions(rows, lane, count)
    lengths = [float((rows[lane == k].astype(np.float32) @ directions[k]).mean()) for k in range(count)]
    return directions * np.array(lengths, np.float32)[:, None]


def main(path: str, labels: str | None = None) -> None:
    bank = Bank.open(path)
    parts = split(bank, 0.15, 0.2)
    exam = Exam.over(bank, parts.valid, "valid", POOL, ROWS)
    train = rows_of(bank, parts.train)
    held, means = np.asarray(bank.rows[train]), context_means(bank, exam.rows)
    everywhere = held.mean(0, dtype=np.float64).astype(np.float32)
    found: dict[str, np.ndarray] = {"of all training rows": np.broadcast_to(everywhere, means.shape)}
    for count in COUNTS:
        anchors = cluster_anchors(held, count)
        own = centres(held, anchors.assign(held)[0], count)
        found[f"of its own lane, {count} clusters"] = own[anchors.assign(means)[0]]
    if labels is not None:
        lanes = by_labels(bank, read_labels(Path(labels), bank))
        own = centres(held, np.asarray(lanes.lane)[train], len(lanes.names))
        found["of its own lane, the document's label"] = own[np.asarray(lanes.lane)[exam.rows]]

    def hit(predicted: np.ndarray) -> str:
        unit = predicted / np.linalg.norm(predicted, axis=1, keepdims=True)
        return f"{100 * exam.rank(torch.from_numpy(unit.astype(np.float32))).hits(5).mean():.1f}"

    rows = [[name, *(hit(means - share * centre) for share in SHRINK)] for name, centre in found.items()]
    columns = ("centre that is taken off", *(f"{share:.0%} of it" for share in SHRINK))
    title = f"Hit@5 of an exponential mean among {POOL:,}; {hit(means)} with no centre taken off"
    show(title, columns, rows, f"{len(exam.rows):,} rows of {len(parts.valid)} valid documents")


if __name__ == "__main__":
    main(*sys.argv[1:])
