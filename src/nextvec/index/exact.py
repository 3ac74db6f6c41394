"""Exact search: every row is scored, in blocks, so memory stays small and nothing is missed."""

# Axes: Q queries, N rows, D width, K neighbours.

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from nextvec.errors import SettingsError

BLOCK = 16_384


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of each query, best first; -1 with score -inf where fewer than K were allowed."""

    rows: Int64[np.ndarray, "Q K"]
    scores: Float32[np.ndarray, "Q K"]


class ExactIndex:
    """All rows of a bank, by inner product; rows stay where they are, memory-mapped."""

    def __init__(self, rows: Float[np.ndarray, "N D"]) -> None:
        self.rows = rows

    def search(self, queries_QD: Float[Tensor, "Q D"], k: int, excluded: Bool[np.ndarray, " N"] | None = None) -> Neighbours:
        """The ``k`` rows with the largest products, rows marked ``excluded`` left out; the lower row first in a tie.

        Raises:
            SettingsError: k below 1.
        """
        if k < 1:
            raise SettingsError(f"k={k}: ask for at least one neighbour")
        queries = queries_QD.detach().float()
        best = torch.full((len(queries), 0), -torch.inf)
        names = torch.empty((len(queries), 0), dtype=torch.long)
        for start in range(0, len(self.rows), BLOCK):
            block = torch.from_numpy(np.array(self.rows[start : start + BLOCK])).float()
            scores = queries @ block.T
            if excluded is not None:
                scores[:, torch.from_numpy(excluded[start : start + BLOCK])] = -torch.inf
            here = torch.arange(start, start + len(block)).expand_as(scores)
            best, names = _largest(torch.cat([best, scores], 1), torch.cat([names, here], 1), k)
        missing = k - best.shape[1]
        rows = torch.where(best.isneginf(), -1, names)
        rows = torch.nn.functional.pad(rows, (0, max(0, missing)), value=-1)
        best = torch.nn.functional.pad(best, (0, max(0, missing)), value=-torch.inf)
        return Neighbours(rows.numpy(), best.numpy())


def _largest(scores: Tensor, names: Tensor, k: int) -> tuple[Tensor, Tensor]:
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return scores.gather(1, order), names.gather(1, order)
