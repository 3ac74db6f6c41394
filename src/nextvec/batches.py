"""Batches: rows of a bank as tensors."""

# Axes: B passages, T positions, D width, N scored rows, C candidates.

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.objective import negative_counts
from nextvec.windows import Windows


@dataclass(frozen=True)
class Passages:
    """Windows as one padded tensor.

    Attributes:
        x: [B, T, D] rows read; position t holds the row before target t. Zero where a passage has ended.
        targets: [B, T] the row that each position predicts; -1 where it is not scored.
    """

    x: Float32[Tensor, "B T D"]
    targets: Int64[Tensor, "B T"]


def passages(bank: Bank, windows: Windows, chosen: Int64[np.ndarray, " B"]) -> Passages:
    """The ``chosen`` windows as tensors; each is read as one slice of the bank."""
    starts, scored, stops = windows.starts[chosen], windows.scored[chosen], windows.stops[chosen]
    length = int((stops - starts).max()) - 1
    x = np.zeros((len(chosen), length, bank.dim), dtype=bank.rows.dtype)
    targets = np.full((len(chosen), length), -1, dtype=np.int64)
    for b, (start, first, stop) in enumerate(zip(starts.tolist(), scored.tolist(), stops.tolist(), strict=True)):
        x[b, : stop - start - 1] = bank.rows[start : stop - 1]
        targets[b, first - start - 1 : stop - start - 1] = np.arange(first, stop)
    # torch widens the rows, because NumPy converts half floats one by one.
    return Passages(torch.from_numpy(x).float(), torch.from_numpy(targets))


@dataclass(frozen=True)
class Candidates:
    """The vectors among which each scored row must be recognised: its truth and its negatives.

    Attributes:
        vectors: [C, D].
        truth: [N] the column of each scored row.
        forbidden: [N, C] candidates that are not negatives: rows already read, and copies of the truth.
        log_q: [C] logarithm of the number of rows that hold the vector. The vector is drawn in proportion to this number.
    """

    vectors: Float32[Tensor, "C D"]
    truth: Int64[Tensor, " N"]
    forbidden: Bool[Tensor, "N C"]
    log_q: Float32[Tensor, " C"]

    @property
    def negatives(self) -> float:
        """Mean number of negatives of a scored row."""
        return float(negative_counts(self.forbidden).double().mean())


def candidates(
    bank: Bank,
    classes: Int64[np.ndarray, " rows"],
    copies: Int64[np.ndarray, " items"],
    scored: Int64[np.ndarray, " N"],
    others: Int64[np.ndarray, " S"],
    in_batch: bool = True,
) -> Candidates:
    """The candidates of a batch: the vectors of all scored rows and of ``others``, each distinct vector once.

    Args:
        classes: for every row of the bank the first item that holds its vector.
        copies: for every such item, the number of training rows that hold its vector.
        scored: target rows.
        others: further rows, as negatives only: sampled, queued or mined.
        in_batch: whether the scored rows are negatives of each other.
    """
    columns = np.unique(classes[np.concatenate([scored, others])])
    truth = np.searchsorted(columns, classes[scored])
    forbidden = np.zeros((len(scored), len(columns)), dtype=bool)
    first = bank.offsets[bank.document_of(scored)]
    for start in np.unique(first):
        rows = np.flatnonzero(first == start)
        last = int(scored[rows].max())
        place = np.searchsorted(columns, classes[start:last])
        place = np.minimum(place, len(columns) - 1)
        here = np.flatnonzero(columns[place] == classes[start:last])
        # A candidate is forbidden after the first row of the document that holds it.
        earliest = np.full(len(columns), np.iinfo(np.int64).max)
        np.minimum.at(earliest, place[here], start + here)
        forbidden[rows] = earliest[None, :] < scored[rows, None]
    if not in_batch:
        forbidden |= ~np.isin(columns, classes[others])
    forbidden[np.arange(len(scored)), truth] = False
    vectors = torch.from_numpy(bank.table.vectors[columns]).float()
    log_q = torch.from_numpy(np.log(np.maximum(copies[columns], 1)).astype(np.float32))
    return Candidates(vectors, torch.from_numpy(truth), torch.from_numpy(forbidden), log_q)
