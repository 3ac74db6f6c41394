"""Additional negatives of a batch: a queue of earlier targets, and mined rows.

The encoder is frozen, so a row always has the same vector. Therefore a queue of
row numbers stays valid, unlike a queue of encoded keys.
"""

# Axes: N targets, C candidates, D width, K mined for each target.

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from nextvec.bank import Bank
from nextvec.models.queries import Scorer, device_of

BLOCK = 512
NOTHING = -1
NEIGHBOURS = 8  # rows on either side of a target that are too similar to be negatives


@dataclass(frozen=True)
class Queue:
    """The targets of the last updates, oldest first; ``size`` at most."""

    rows: Int64[np.ndarray, " N"]
    size: int

    @staticmethod
    def empty(size: int) -> "Queue":
        return Queue(np.empty(0, np.int64), size)

    def push(self, rows: Int64[np.ndarray, " N"]) -> "Queue":
        return Queue(np.concatenate([self.rows, rows])[-self.size :] if self.size else self.rows, self.size)


@dataclass(frozen=True)
class Mined:
    """Hard negatives of some targets.

    Attributes:
        targets: [N] rows, ascending.
        negatives: [N, K] rows; -1 where fewer than K were found.
    """

    targets: Int64[np.ndarray, " N"]
    negatives: Int64[np.ndarray, "N K"]

    @staticmethod
    def none(count: int) -> "Mined":
        return Mined(np.empty(0, np.int64), np.empty((0, count), np.int64))

    def joined(self, others: "Mined") -> "Mined":
        """These and those of other targets."""
        order = np.argsort(targets := np.concatenate([self.targets, others.targets]))
        return Mined(targets[order], np.concatenate([self.negatives, others.negatives])[order])

    def of(self, targets: Int64[np.ndarray, " M"]) -> Int64[np.ndarray, " found"]:
        """The negatives mined for any of these targets, each row once."""
        met = np.isin(self.targets, targets)
        return np.setdiff1d(self.negatives[met], [NOTHING])

    @property
    def found(self) -> float:
        """Negatives per target."""
        return float((self.negatives != NOTHING).sum(1).mean()) if len(self.targets) else 0.0


@torch.inference_mode()
def mine(
    bank: Bank,
    candidates: Int64[np.ndarray, " C"],
    targets: Int64[np.ndarray, " N"],
    predicted_NW: Float[Tensor, "N W"],
    scorer: Scorer,
    count: int,
    low: float,
    high: float,
) -> Mined:
    """For each target the ``count`` candidates with the highest scores, among those whose cosine to the truth is in range.

    Args:
        candidates: rows to choose from.
        targets: rows, ascending; predicted_NW: the scorer's output for each target.
        low, high: range of the cosine to the truth, ``high`` excluded. A negative below ``low``
            is easy. A row from ``high`` on is as good an answer as the truth.

    Rows within ``NEIGHBOURS`` of the target in its own document are never chosen.
    """
    pool_CD = torch.from_numpy(bank.rows[candidates]).float()
    mapped_CE = scorer.candidates(pool_CD.to(device_of(scorer)))
    place = torch.from_numpy(candidates)
    document = torch.from_numpy(bank.document_of(candidates))
    out = np.full((len(targets), count), NOTHING, dtype=np.int64)
    for start in range(0, len(targets), BLOCK):
        rows = targets[start : start + BLOCK]
        truth_ND = torch.from_numpy(bank.rows[rows]).float()
        alike_NC = truth_ND @ pool_CD.T
        near_NC = (torch.from_numpy(rows)[:, None] - place).abs() <= NEIGHBOURS
        near_NC &= torch.from_numpy(bank.document_of(rows))[:, None] == document
        allowed_NC = (alike_NC >= low) & (alike_NC < high) & ~near_NC
        liked_NC = scorer.scores(predicted_NW[start : start + BLOCK].to(mapped_CE.device), mapped_CE).cpu()
        liked_NC = liked_NC.masked_fill(~allowed_NC, -torch.inf)
        best = liked_NC.topk(min(count, len(candidates)), dim=1)
        found = torch.where(best.values.isneginf(), NOTHING, place[best.indices])
        out[start : start + BLOCK, : found.shape[1]] = found.numpy()
    return Mined(targets, out)
