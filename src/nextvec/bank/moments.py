"""Mean and covariance of the rows of some documents."""

# Axes: M documents, D width, B rows of a block.

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from nextvec.bank.bank import Bank
from nextvec.progress import Progress, silent

BLOCK = 1 << 22  # numbers of a block, 32 MB in float64


@dataclass(frozen=True, eq=False)
class Moments:
    """The first two moments of rows.

    Attributes:
        mean: [D].
        covariance: [D, D], divided by the number of rows.
        rows: how many rows were read.
    """

    mean: Float64[np.ndarray, " D"]
    covariance: Float64[np.ndarray, "D D"]
    rows: int


def moments(bank: Bank, documents: Int64[np.ndarray, " M"] | None = None, progress: Progress = silent) -> Moments:
    """The moments of the rows of some documents, in float64. A row that is held several times counts as often.

    Args:
        documents: numbers of the documents; None for all.
    """
    chosen = np.arange(bank.num_documents) if documents is None else documents
    total = int(bank.lengths[chosen].sum())
    mean, covariance, count = np.zeros(bank.dim), np.zeros((bank.dim, bank.dim)), 0
    for first, stop in _blocks(bank, chosen):
        block = bank.rows[first:stop].astype(np.float64)
        # Chan, Golub and LeVeque (1983): sums of squares about the mean of each block do not cancel.
        own = block.mean(0)
        added, shift = len(block), own - mean
        block -= own
        covariance += block.T @ block
        covariance += np.outer(shift, shift) * (count * added / (count + added))
        mean += shift * (added / (count + added))
        count += added
        progress("mean and covariance", count, total)
    return Moments(mean, covariance / max(1, count), count)


def _blocks(bank: Bank, documents: Int64[np.ndarray, " M"]) -> Iterator[tuple[int, int]]:
    """Ranges of rows, of bounded size. Documents that follow each other in the bank share a range."""
    size = max(1, BLOCK // bank.dim)
    breaks = np.flatnonzero(np.diff(documents) != 1) + 1
    for run in np.split(documents, breaks) if len(documents) else []:
        last = int(bank.offsets[run[-1] + 1])
        for first in range(int(bank.offsets[run[0]]), last, size):
            yield first, min(first + size, last)
