"""The search without compiled code."""

# Axes: Q queries, B rows of one block, A rows that a mask knows, P rows by number, C chosen rows.

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64

from nextvec.kernels.scan_best import Best, best_of
from nextvec.kernels.scan_bounds import BoundedQueries
from nextvec.kernels.scan_rows import Stored, products

BLOCK = 4_096  # rows that are multiplied at once


def nearest_torch(
    parts: Sequence[Stored],
    queries: BoundedQueries,
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None,
    allowed: Bool[np.ndarray, " A"] | None,
    upper: Float32[np.ndarray, "Q P"] | None,
) -> Best:
    """:func:`~nextvec.kernels.scan.nearest` of one block of queries, without compiled code.

    Args:
        upper: receives the bounds of :func:`~nextvec.kernels.scan.upper_bounds`, which then take the place of the products.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    decided = 0
    for part, start, read in _products_of_blocks(parts, queries):
        names = np.arange(part.first + start, part.first + start + read.shape[1])
        if allowed is not None:
            may = np.zeros(len(names), bool)
            known = allowed[names[0] : names[-1] + 1]
            may[: len(known)] = known
            read[:, ~may] = -np.inf
        for q, barred in enumerate(excluded or ()):
            read[q, barred[(barred >= names[0]) & (barred <= names[-1])] - names[0]] = -np.inf
        if upper is not None:
            upper[:, names[0] : names[-1] + 1] = read + queries.slack[:, None]
        for q in range(len(queries)):
            # At least k rows of the block have a deciding product above the k-th best read one less the slack.
            own = np.partition(read[q], -k)[-k] - queries.slack[q] if read.shape[1] >= k else -np.inf
            floor = max(scores[q, -1], own) - queries.slack[q]
            chosen = np.flatnonzero((read[q] >= floor) & (read[q] > -np.inf))
            if upper is not None:
                exact = upper[q, names[chosen]]
            else:
                exact = products(part.rows, start + chosen, queries.vectors[q])
                decided += len(chosen)
            found = (np.concatenate([scores[q], exact])[None], np.concatenate([rows[q], names[chosen]])[None])
            scores[q : q + 1], rows[q : q + 1] = best_of(*found, k)
    return Best(scores, rows, decided)


def bounds_torch(
    parts: Sequence[Stored], chosen: Sequence[Int64[np.ndarray, "..."]], queries: BoundedQueries
) -> list[Float32[np.ndarray, "Q C"]]:
    """As :func:`~nextvec.kernels.scan_compiled.bounds_compiled`, without compiled code."""
    vectors, found = torch.from_numpy(queries.vectors), list[np.ndarray]()
    for part, rows in zip(parts, chosen, strict=True):
        read = vectors @ torch.from_numpy(part.rows[rows]).float().T
        found.append(read.numpy() + queries.slack[:, None])
    return found


def _products_of_blocks(
    parts: Sequence[Stored], queries: BoundedQueries
) -> Iterator[tuple[Stored, int, Float32[np.ndarray, "Q B"]]]:
    """Products of all queries with each block of rows. The rows are read, not their codes, because torch would widen codes."""
    vectors = torch.from_numpy(queries.vectors)
    for part in parts:
        for start in range(0, len(part), BLOCK):
            block = torch.from_numpy(np.array(part.rows[start : start + BLOCK])).float()
            yield part, start, (vectors @ block.T).numpy()
