"""Search with several queries at once: the rows with the largest pooled scores."""

# Axes: N predictions, Q queries of one prediction, E width, A rows that a mask knows.

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from nextvec.errors import DataError
from nextvec.index.protocol import Index, Neighbours
from nextvec.kernels.scan_pooled import PooledQuery

ABSENT = -1e4  # a query of this log weight or less counts nothing


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
    is exact; otherwise it misses what a search of the index misses, which
    ``index.measured`` states.

    Args:
        queries: of N predictions; a positive sharpness.
        excluded: for each prediction, rows whose vectors are left out.
        allowed: as for :meth:`Index.search`.

    Raises:
        SettingsError: k below 1, or filters for an index without this ability.
        DataError: queries of another width or not finite, filters of another shape, or a sharpness that is not positive.
    """
    # Few calls of torch: after a search has read all rows, each of them is slow.
    vectors, log_weights = queries.vectors.numpy(force=True), queries.log_weights.numpy(force=True).astype(np.float64)
    sharpness = float(queries.sharpness)
    if vectors.shape[2] != index.dim:
        raise DataError(f"queries have shape {list(vectors.shape)}; want [predictions, queries, {index.dim}]")
    if not 0 < sharpness < np.inf or not np.isfinite(log_weights).all():
        raise DataError("the sharpness or a weight of the queries is not a positive number; the model is broken")
    present = [line > min(ABSENT, line.max() - 1) for line in log_weights]  # at least one, whatever the weights
    predictions = [
        PooledQuery(np.ascontiguousarray(of[own], np.float32), line[own], sharpness)
        for of, line, own in zip(vectors, log_weights, present, strict=True)
    ]
    return index.search_pooled(predictions, k, excluded, allowed)
