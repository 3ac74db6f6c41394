"""Exact search: the rows with the largest products, for a block of queries at a time.

Rows are *read* in one format and *decided* in another. Reading uses codes that
may be rounded (float16, int8) and sums in any order; it rules rows out. For all
rows that it cannot rule out, :func:`~nextvec.kernels.scan_rows.products`
decides: sums in double, in one fixed order, rounded to float32 once. These have
the same bits on every processor and in NumPy. So a result does not depend on
the format that is read, the number of queries or threads, or whether there is
compiled code.

Why no row is missed. A row is ``x = s c + e``: its codes ``c``, its scale
``s``, and an error ``e`` whose length is stored, rounded up. A query for
int8 codes is ``q = t d + f`` in the same way, with 16-bit codes. By Cauchy and
Schwarz

    ``|x q - s t (c d)|  <=  |e| |q| + |s c| |f|``

and ``c d`` is a sum of integers, without rounding. Sums of floats are
rounded, by at most ``D 2^-24 |x| |q|`` in any order (Higham 2002, 3.1).
``slack`` (:mod:`nextvec.kernels.scan_bounds`) is the sum of these terms. A row
is decided whenever its product plus the slack exceeds the worst score kept.
"""

# Axes: Q queries, D width, A rows that a mask knows, P rows by number, C chosen rows.

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from nextvec.kernels.scan_best import Best
from nextvec.kernels.scan_bounds import bounded
from nextvec.kernels.scan_compiled import bounds_compiled, nearest_compiled
from nextvec.kernels.scan_library import loaded
from nextvec.kernels.scan_rows import Stored
from nextvec.kernels.scan_torch import bounds_torch, nearest_torch

QUERIES = 256  # that share one pass over the rows: as many as fit a second-level cache


def nearest(
    parts: Sequence[Stored],
    queries: Float32[np.ndarray, "Q D"],
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
    allowed: Bool[np.ndarray, " A"] | None = None,
    threads: int = 1,
) -> Best:
    """The ``k`` rows with the largest deciding products.

    Args:
        parts: all of one format, their row numbers ascending.
        queries: finite, and short enough for finite products.
        excluded: for each query, the numbers of rows that are left out.
        allowed: by row number, the rows that may be answers; rows beyond its end are left out.
        threads: the most threads that read at the same time; few rows are read by fewer.

    Raises:
        DataError: a query is not finite, or too long.
    """
    found = [
        _block(parts, queries[block], k, None if excluded is None else excluded[block], allowed, threads, None)
        for block in _blocks(len(queries))
    ]
    if len(found) == 1:
        return found[0]
    return Best(
        np.concatenate([best.scores for best in found]),
        np.concatenate([best.rows for best in found]),
        sum(best.decided for best in found),
    )


def upper_bounds(
    parts: Sequence[Stored],
    queries: Float32[np.ndarray, "Q D"],
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
    allowed: Bool[np.ndarray, " A"] | None = None,
    threads: int = 1,
) -> tuple[Float32[np.ndarray, "Q P"], Int64[np.ndarray, "Q K"]]:
    """Upper bounds of the deciding products of all rows, and the ``k`` rows with the largest bounds. No product is decided.

    The arguments and errors are those of :func:`nearest`.

    Returns:
        By row number the bounds, -inf for rows that are left out; and the rows, best first, -1 where rows are missing.
    """
    upper = np.empty((len(queries), parts[-1].first + len(parts[-1])), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    for block in _blocks(len(queries)):
        barred = None if excluded is None else excluded[block]
        rows[block] = _block(parts, queries[block], k, barred, allowed, threads, upper[block]).rows
    return upper, rows


def bounds_of(
    parts: Sequence[Stored], names: Int64[np.ndarray, " C"], queries: Float32[np.ndarray, "Q D"]
) -> Float32[np.ndarray, "Q C"]:
    """Upper bounds of the deciding products of some rows.

    Args:
        names: the numbers of the rows, ascending.

    Raises:
        DataError: a query is not finite, or too long.
    """
    chosen = [part.places(names) for part in parts]
    if loaded() is None:
        found = bounds_torch(parts, chosen, bounded(parts, queries))
    else:
        found = bounds_compiled(parts, chosen, queries)
    return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


def _block(
    parts: Sequence[Stored],
    queries: Float32[np.ndarray, "Q D"],
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None,
    allowed: Bool[np.ndarray, " A"] | None,
    threads: int,
    upper: Float32[np.ndarray, "Q P"] | None,
) -> Best:
    if loaded() is None:
        return nearest_torch(parts, bounded(parts, queries), k, excluded, allowed, upper)
    return nearest_compiled(parts, queries, k, excluded, allowed, threads, upper)


def _blocks(queries: int) -> Iterator[slice]:
    return (slice(start, min(start + QUERIES, queries)) for start in range(0, max(queries, 1), QUERIES))
