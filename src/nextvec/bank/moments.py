"""Mean and covariance of the rows of some documents."""

# Axes: M documents, D width, B rows of a block.

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from nextvec.bank.bank import Bank

BLOCK = 16_384


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


def moments(bank: Bank, documents: Int64[np.ndarray, " M"]) -> Moments:
    """The moments of the rows of some documents, in float64. A row that is held several times counts as often."""
    mean, covariance, count = np.zeros(bank.dim), np.zeros((bank.dim, bank.dim)), 0
    for m in documents:
        rows = bank.document(int(m))
        for first in range(0, len(rows), BLOCK):
            block = rows[first : first + BLOCK].astype(np.float64)
            # Chan, Golub and LeVeque (1983): sums of squares about the mean of each block do not cancel.
            added, shift = len(block), block.mean(0) - mean
            covariance += (block - block.mean(0)).T @ (block - block.mean(0))
            covariance += np.outer(shift, shift) * (count * added / (count + added))
            mean += shift * (added / (count + added))
            count += added
    return Moments(mean, covariance / max(1, count), count)
