"""Search with several queries at once: the rows with the largest pooled score, found without scoring every row.

The threshold algorithm (Fagin, Lotem and Naor 2003). One search finds the best
``m`` rows of each query, and every row of these lists gets its pooled score. A
row outside all lists has, with each query, at most the product that ends the
list of that query. The pooled score grows with every product, so the pooled
value of these last products bounds the score of every row that is in no list.
Where the k-th best row is above the bound, the answer is exact. Otherwise the
lists become longer, until they hold all rows.
"""

# Axes: N predictions, Q queries of one prediction, E width, K neighbours, A rows that a mask knows, R rows, M length of a list.

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from nextvec.errors import DataError, SettingsError
from nextvec.index.inputs import as_array
from nextvec.index.protocol import Index, Neighbours

ABSENT = -1e4  # a query of this log weight or less counts nothing
FIRST, GROWTH = 4, 4  # the first lists are this many times as long as the answer; then this factor from try to try
LEAST = 32  # rows of the first lists
EVERY = 8  # lists that would hold an eighth of all rows: one list of all rows costs less
MARGIN = 1e-12  # sums in double of a bound and of a score can differ by less, relatively


@runtime_checkable
class PooledQueries(Protocol):
    """Several queries for each prediction, with the pooled score of ``nextvec.models.queries.Queries``."""

    @property
    def vectors(self) -> Float[Tensor, "N Q E"]: ...
    @property
    def log_weights(self) -> Float[Tensor, "N Q"]: ...
    @property
    def sharpness(self) -> Float[Tensor, ""]: ...


def search_pooled(
    index: Index,
    queries: PooledQueries,
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
    allowed: Bool[np.ndarray, " A"] | None = None,
) -> Neighbours:
    """The ``k`` distinct vectors with the largest pooled scores for each prediction; of equal scores the lower row first.

    A score is ``log sum_q exp(sharpness product_q + log_weight_q) / sharpness``
    of the deciding products, in double, rounded to float32 once. Queries with a
    log weight of -1e4 or less are left out. The answer is exact where the index
    is exact; otherwise it misses what the searches of the single queries miss,
    which ``index.measured`` states.

    Args:
        queries: of N predictions; a positive sharpness.
        excluded: for each prediction, rows whose vectors are left out.
        allowed: as for :meth:`Index.search`.

    Raises:
        SettingsError: k below 1, or filters for an index without this ability.
        DataError: queries of another width or not finite, filters of another shape, or a sharpness that is not positive.
    """
    pools = _pools(queries, index.dim)
    if k < 1:
        raise SettingsError(f"k={k}: k must be at least 1")
    if excluded is not None and len(excluded) != len(pools):
        raise DataError(f"{len(pools)} predictions need as many lists of excluded rows, not {len(excluded)}")
    rows, scores = np.full((len(pools), k), -1, np.int64), np.full((len(pools), k), -np.inf, np.float32)
    left, length, decided = list(range(len(pools))), max(FIRST * k, LEAST), 0
    while left:
        whole = EVERY * length >= len(index)  # then one query lists all rows
        asked = [pools[n].vectors[:1] if whole else pools[n].vectors for n in left]
        owner = np.repeat(left, list(map(len, asked)))
        barred = None if excluded is None else [excluded[n] for n in owner.tolist()]
        found = index.search(np.concatenate(asked), len(index) if whole else length, barred, allowed)
        decided += found.decided
        still: list[int] = []
        for n in left:
            listed, last = found.rows[owner == n], found.scores[owner == n][:, -1]
            names, pooled = pools[n].scores(index, listed)
            decided += len(names) * len(pools[n].vectors)
            best = np.lexsort((names, -pooled))[:k]
            # A list that ends early holds all rows that the filters admit.
            ended = whole or bool((listed[:, -1] < 0).any())
            if ended or (len(best) == k and pooled[best[-1]] > pools[n].bound(last)):
                rows[n, : len(best)], scores[n, : len(best)] = names[best], pooled[best]
            else:
                still.append(n)
        left, length = still, GROWTH * length
    return Neighbours(rows, scores, decided)


def _pools(queries: PooledQueries, dim: int) -> "list[_Pool]":
    """The queries of each prediction, without those that count nothing."""
    count, each, width = queries.vectors.shape
    vectors = as_array(queries.vectors.reshape(-1, width), dim).reshape(count, each, width)
    log_weights, sharpness = queries.log_weights.detach().double().numpy(), float(queries.sharpness.detach())
    if not 0 < sharpness < np.inf or not np.isfinite(log_weights).all():
        raise DataError("the sharpness or a weight of the queries is not a positive number; the model is broken")
    kept = [line > min(ABSENT, line.max() - 1) for line in log_weights]  # at least one, whatever the weights
    return [_Pool(vectors[n, own], log_weights[n, own], sharpness) for n, own in enumerate(kept)]


class _Pool:
    """The pooled score of one prediction."""

    def __init__(self, vectors: Float32[np.ndarray, "Q E"], log_weights: Float64[np.ndarray, " Q"], sharpness: float) -> None:
        self.vectors, self.log_weights, self.sharpness = vectors, log_weights, sharpness

    def scores(
        self, index: Index, rows: Int64[np.ndarray, "lists M"]
    ) -> tuple[Int64[np.ndarray, " R"], Float32[np.ndarray, " R"]]:
        """The rows of some lists, each once and ascending, and their scores."""
        names = np.unique(rows)
        names = names[names >= 0]
        products_QR = np.stack([index.scores(names, vector) for vector in self.vectors])
        return names, self._pooled(products_QR).astype(np.float32)

    def bound(self, last: Float32[np.ndarray, " Q"]) -> np.float32:
        """The largest score of a row whose products are at most these."""
        most = self._pooled(last[:, None])[0]
        return np.float32(most + MARGIN * (1 + abs(most)))

    def _pooled(self, products_QR: Float32[np.ndarray, "Q R"]) -> Float64[np.ndarray, " R"]:
        terms_QR = self.sharpness * products_QR.astype(np.float64) + self.log_weights[:, None]
        most_R = terms_QR.max(axis=0)
        return (most_R + np.log(np.exp(terms_QR - most_R).sum(axis=0))) / self.sharpness
