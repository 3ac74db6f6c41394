"""The best rows of each query."""

# Axes: Q queries, K neighbours, C candidates.

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64


@dataclass(frozen=True, eq=False)
class Best:
    """The ``K`` best rows of each query, best first; of equal scores the lower row first.

    Places without a row hold -1 and the score -inf.

    Attributes:
        decided: number of deciding products that were computed, over all queries.
    """

    scores: Float32[np.ndarray, "Q K"]
    rows: Int64[np.ndarray, "Q K"]
    decided: int


def best_of(
    scores: Float32[np.ndarray, "Q C"], rows: Int64[np.ndarray, "Q C"], k: int
) -> tuple[Float32[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]:
    """The ``k`` best of C candidates, C at least ``k``; of equal scores the lower row first."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
