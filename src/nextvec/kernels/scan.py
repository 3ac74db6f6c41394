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

# Axes: Q queries, D width, A rows that a mask knows.

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from nextvec.kernels.scan_best import Best
from nextvec.kernels.scan_bounds import bounded
from nextvec.kernels.scan_compiled import nearest_compiled
from nextvec.kernels.scan_library import loaded
from nextvec.kernels.scan_rows import Stored
from nextvec.kernels.scan_torch import nearest_torch

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
    found: list[Best] = []
    for block in _blocks(len(queries)):
        own, names = queries[block], None if excluded is None else excluded[block]
        if loaded() is None:
            found.append(nearest_torch(parts, bounded(parts, own), k, names, allowed))
        else:
            found.append(nearest_compiled(parts, own, k, names, allowed, threads))
    if len(found) == 1:
        return found[0]
    return Best(
        np.concatenate([best.scores for best in found]),
        np.concatenate([best.rows for best in found]),
        sum(best.decided for best in found),
    )


def _blocks(queries: int) -> Iterator[slice]:
    return (slice(start, min(start + QUERIES, queries)) for start in range(0, max(queries, 1), QUERIES))
