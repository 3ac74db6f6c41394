"""Bounds of the error of a product that reads codes instead of rows (derived in :mod:`nextvec.kernels.scan`)."""

# Axes: Q queries, D width.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16

from nextvec.kernels.scan_rows import UP, Stored, check_finite, lengths


@dataclass(frozen=True, eq=False)
class BoundedQueries:
    """Queries as they are multiplied with codes.

    Attributes:
        codes: [Q, D] for int8 rows, else [0, 0].
        scales: [Q] of the codes.
        lengths: [Q] of the vectors, rounded up.
        slack: [Q] the most by which a deciding product exceeds the one that was read.
    """

    vectors: Float32[np.ndarray, "Q D"]
    codes: Int16[np.ndarray, "QC DC"]
    scales: Float32[np.ndarray, " Q"]
    lengths: Float32[np.ndarray, " Q"]
    slack: Float32[np.ndarray, " Q"]

    def __len__(self) -> int:
        return len(self.vectors)


def bounded(parts: Sequence[Stored], queries: Float32[np.ndarray, "Q D"]) -> BoundedQueries:
    """The queries with their bounds; ``nextvec_scan_bounds`` computes the same.

    Raises:
        DataError: as :func:`~nextvec.kernels.scan_rows.check_finite`.
    """
    check_finite(parts, queries)
    most, longest, error = terms(parts)
    queries = np.ascontiguousarray(queries)
    own, lost = lengths(queries), np.zeros(len(queries))
    scales, codes = np.empty(len(queries), np.float32), np.empty((0, 0), np.int16)
    if most:  # the errors of the rows are added to the products row by row
        scales = np.abs(queries).max(axis=1) * np.float32(UP / most) + np.float32(1e-36)
        codes = np.rint(queries / scales[:, None]).astype(np.int16)
        lost = lengths(queries - codes * scales[:, None].astype(np.float64))
    # 16 roundings more than the sum has: those of the lengths, the scales, the deciding product and the comparison.
    rounding = (queries.shape[1] + 16) * 2.0**-24 * UP * longest * (own + lost) + 1e-36
    slack = longest * lost + rounding + (0 if most else error * own)
    return BoundedQueries(queries, codes, scales, (own * UP).astype(np.float32), (slack * UP).astype(np.float32))


def terms(parts: Sequence[Stored]) -> tuple[int, float, float]:
    """The constants of the bounds.

    Returns:
        The largest code of a query, 0 where rows are read as floats; an upper bound of the length of what codes stand for;
        an upper bound of their error.
    """
    error, longest = parts[0].error, parts[0].longest
    if len(parts) > 1:
        error, longest = max(part.error for part in parts), max(part.longest for part in parts)
    # A sum of products must fit 32 bits.
    most = min(32_767, (2**31 - 1) // (127 * parts[0].rows.shape[1])) if parts[0].codes.itemsize == 1 else 0
    return most, longest + error, error
