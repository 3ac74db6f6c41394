"""Exact search with several queries for each prediction: the rows with the largest pooled scores.

The pooled score of a row ``c`` is ``log sum_q exp(s q.c + w_q) / s`` over the
queries ``q`` of a prediction, with log weights ``w_q`` and sharpness ``s``. It
grows with every product. By Cauchy and Schwarz, for any centre ``m``,

    ``q.c  =  m.c + (q - m).c  <=  m.c + |q - m| |c|``

so the pooled score of a row exceeds its product with ``m`` by at most the pooled
value of ``|q - m| L``, where ``L`` is the length of the longest row. One pass
over the rows computes the products with the centre. The best of these rows are
scored. A row whose bound does not reach the k-th best of their scores is ruled
out. If many rows are left, their products with all queries are bounded by their
codes, which gives a closer bound of the score. The rows that are still left are
scored, by the deciding products.
"""

# Axes: N predictions, Q queries of one prediction, E width, R rows, A rows that a mask knows.

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from nextvec.kernels.scan import bounds_of, upper_bounds
from nextvec.kernels.scan_best import Best
from nextvec.kernels.scan_rows import LARGEST, Stored, check_finite, lengths, products_of_several

FIRST = 4  # rows that are scored at first, times k: the more, the higher the score that other rows must reach
MANY = 100  # more rows than this get a closer bound before they are scored
BOUNDS = 1 << 24  # bounds of products that are kept at once: 64 MB
ROUNDING = 2.0**-20  # relative: products, bounds, scores and their comparison are rounded to float32


@dataclass(frozen=True, eq=False)
class PooledQuery:
    """The queries of one prediction, all of which count.

    Attributes:
        vectors: contiguous.
        sharpness: positive.
    """

    vectors: Float32[np.ndarray, "Q E"]
    log_weights: Float64[np.ndarray, " Q"]
    sharpness: float

    @cached_property
    def length(self) -> float:
        """The length of the longest query, rounded up."""
        return float(lengths(self.vectors).max())

    def scores(self, products_QR: Float[np.ndarray, "Q R"], dtype: type[Any] = np.float64) -> Float[np.ndarray, " R"]:
        """The pooled scores of rows with these products, computed in this dtype."""
        terms_QR = dtype(self.sharpness) * products_QR + self.log_weights.astype(dtype)[:, None]
        most_R = terms_QR.max(axis=0)
        # Added query by query: the order of NumPy's sums depends on the number of rows.
        return (most_R + np.log(sum(np.exp(terms_QR - most_R)))) / dtype(self.sharpness)

    def centre(self, longest: float) -> tuple[Float32[np.ndarray, " E"], float]:
        """A centre of the queries, and the most by which the score of a row exceeds its product with the centre.

        A soft maximum that is sharp depends on all queries alike, and one that is not on their weights. So the centre is their
        mean with weights that are as flat as the sharpness is large.

        Args:
            longest: the length of the longest row.
        """
        weights = np.exp((self.log_weights - self.log_weights.max()) / (1 + self.sharpness * self.length * longest))
        centre = (weights / weights.sum()).astype(np.float32) @ self.vectors
        apart = longest * lengths(self.vectors - centre.astype(np.float64))
        return centre, float(self.scores(apart[:, None])[0]) + self.rounding(longest)

    def rounding(self, longest: float) -> float:
        """The most by which a score and a bound of it, computed in float32, can differ by rounding."""
        terms = float(np.abs(self.log_weights).max()) + len(self.vectors)
        return ROUNDING * (2 * self.length * longest + terms / self.sharpness) + 1e-36


def nearest_pooled(
    parts: Sequence[Stored],
    predictions: Sequence[PooledQuery],
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
    allowed: Bool[np.ndarray, " A"] | None = None,
    threads: int = 1,
) -> Best:
    """The ``k`` rows with the largest pooled scores, which are computed in double and rounded to float32 once.

    Args:
        parts, allowed, threads: as for :func:`~nextvec.kernels.scan.nearest`.
        excluded: for each prediction, the numbers of rows that are left out.

    Raises:
        DataError: a query is not finite, or too long.
    """
    longest, places = max(part.longest for part in parts), parts[-1].first + len(parts[-1])
    for prediction in predictions:
        if not prediction.length * longest < LARGEST:
            check_finite(parts, prediction.vectors)
    scores, rows = np.full((len(predictions), k), -np.inf, np.float32), np.full((len(predictions), k), -1, np.int64)
    decided, first = 0, min(FIRST * k, max(k, places))
    for block in _blocks(len(predictions), places):
        centres = [prediction.centre(longest) for prediction in predictions[block]]
        barred = None if excluded is None else excluded[block]
        upper, begun = upper_bounds(parts, np.stack([centre for centre, _ in centres]), first, barred, allowed, threads)
        for n, (_, most) in enumerate(centres):
            prediction, reached = predictions[block.start + n], -np.inf
            names = np.sort(begun[n][begun[n] >= 0])
            if len(names) >= k:
                reached = np.partition(_scores(parts, prediction, names), -k)[-k]
                decided += len(names) * len(prediction.vectors)
            # Rows that are left out have the bound -inf. Where scores overflow, no row is ruled out.
            names = np.flatnonzero(upper[n] >= np.float32(np.fmin(np.fmax(reached - most, -LARGEST), LARGEST)))
            if len(names) > MANY:
                names = _reaching(parts, prediction, names, reached)
            found = _scores(parts, prediction, names).astype(np.float32)
            decided += len(names) * len(prediction.vectors)
            best = np.argsort(-found, kind="stable")[:k]  # of equal scores the lower row first
            scores[block.start + n, : len(best)], rows[block.start + n, : len(best)] = found[best], names[best]
    return Best(scores, rows, decided)


def _reaching(
    parts: Sequence[Stored], prediction: PooledQuery, names: Int64[np.ndarray, " R"], reached: float
) -> Int64[np.ndarray, " left"]:
    """Of rows in ascending order, those whose products may pool to a score of ``reached``."""
    left, rounding = [names[:0]], prediction.rounding(max(part.longest for part in parts))
    for some in _blocks_of(names, prediction):
        with np.errstate(over="ignore", invalid="ignore"):
            bounds = prediction.scores(bounds_of(parts, some, prediction.vectors), np.float32)
        left.append(some[~(bounds < reached - rounding)])
    return np.concatenate(left)


def _scores(parts: Sequence[Stored], prediction: PooledQuery, names: Int64[np.ndarray, " R"]) -> Float64[np.ndarray, " R"]:
    """The pooled scores of rows in ascending order."""
    out = [np.empty(0)]
    for some in _blocks_of(names, prediction):
        products = [products_of_several(part.rows, part.places(some), prediction.vectors) for part in parts]
        out.append(prediction.scores(np.concatenate(products, axis=1)))
    return np.concatenate(out)


def _blocks_of(names: Int64[np.ndarray, " R"], prediction: PooledQuery) -> Iterator[Int64[np.ndarray, " some"]]:
    each = max(1, BOUNDS // len(prediction.vectors))
    return (names[start : start + each] for start in range(0, len(names), each))


def _blocks(predictions: int, places: int) -> Iterator[slice]:
    each = max(1, BOUNDS // max(1, places))
    return (slice(start, min(start + each, predictions)) for start in range(0, predictions, each))
