"""The search with compiled code: threads read equal shares of the rows."""

# Axes: Q queries, D width, A rows that a mask knows, P rows by number, C chosen rows.

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from jaxtyping import Bool, Float32, Int64

from nextvec.kernels.memory import address
from nextvec.kernels.scan_best import Best, best_of
from nextvec.kernels.scan_bounds import terms
from nextvec.kernels.scan_library import FiltersC, PieceC, loaded
from nextvec.kernels.scan_rows import UP, Stored, check_finite

LEAST = 4 << 20  # bytes that are worth a thread of their own

Piece = tuple[Stored, int, int]  # rows start:stop of a part


def nearest_compiled(
    parts: Sequence[Stored],
    queries: Float32[np.ndarray, "Q D"],
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None,
    allowed: Bool[np.ndarray, " A"] | None,
    threads: int,
    upper: Float32[np.ndarray, "Q P"] | None,
) -> Best:
    """:func:`~nextvec.kernels.scan.nearest` of one block of queries, with compiled code.

    Args:
        upper: receives the bounds of :func:`~nextvec.kernels.scan.upper_bounds`, which then take the place of the products.
    """
    compiled = loaded()
    assert compiled is not None
    count, dim = queries.shape
    own = np.ascontiguousarray(queries)  # named, so that it lives as long as its address is used
    query_terms = (address(own), count, dim, *terms(parts), UP)
    mask, names, ends = allowed, None, None
    if allowed is not None:
        mask = np.ascontiguousarray(allowed)
    if excluded is not None:
        names = np.concatenate([*excluded, np.empty(0, np.int64)])
        ends = np.cumsum([len(barred) for barred in excluded], dtype=np.int64)
    whole = -(-(parts[-1].first + len(parts[-1])) // 64)
    if upper is not None:
        upper.fill(-np.inf)  # of blocks that a mask lets the search skip
    filters = FiltersC(_maybe(mask), 0 if mask is None else len(mask), _maybe(names), _maybe(ends), whole)

    def read(pieces: list[Piece]) -> Best:
        scores, rows = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
        given = (PieceC * len(pieces))(*((ctypes.addressof(part.c), start, stop) for part, start, stop in pieces))
        kept = (address(scores), address(rows), k, _maybe(upper), 0 if upper is None else upper.shape[1])
        decided = compiled.nextvec_scan_nearest(given, len(pieces), *query_terms, filters, *kept)
        _check(decided, parts, queries)
        return Best(scores, rows, decided)

    found = _side_by_side(read, _pieces(parts, count, threads))
    if upper is not None and allowed is not None:
        upper[:, : len(allowed)][:, ~allowed] = -np.inf
        upper[:, len(allowed) :] = -np.inf
    if len(found) == 1:
        return found[0]
    together = (np.concatenate([best.scores for best in found], 1), np.concatenate([best.rows for best in found], 1))
    return Best(*best_of(*together, k), sum(best.decided for best in found))


def bounds_compiled(
    parts: Sequence[Stored], chosen: Sequence[Int64[np.ndarray, "..."]], queries: Float32[np.ndarray, "Q D"]
) -> list[Float32[np.ndarray, "Q C"]]:
    """:func:`~nextvec.kernels.scan.bounds_of` of some rows of each part, counted from the part's first, with compiled code."""
    compiled = loaded()
    assert compiled is not None
    own, found = np.ascontiguousarray(queries), list[np.ndarray]()
    query_terms = (address(own), *queries.shape, *terms(parts), UP)
    for part, rows in zip(parts, chosen, strict=True):
        upper = np.empty((len(queries), len(rows)), np.float32)
        done = compiled.nextvec_scan_upper(part.c, address(rows), len(rows), *query_terms, address(upper))
        _check(done, parts, queries)
        found.append(upper)
    return found


def _check(done: int, parts: Sequence[Stored], queries: Float32[np.ndarray, "Q D"]) -> None:
    """
    Raises:
        DataError, MemoryError: compiled code has returned this.
    """
    if done == -1:
        check_finite(parts, queries)
    if done < 0:
        raise MemoryError(f"memory for a search with {len(queries)} queries is lacking")


def _maybe(array: np.ndarray | None) -> int | None:
    return None if array is None else address(array)


def _pieces(parts: Sequence[Stored], queries: int, threads: int) -> list[list[Piece]]:
    """Equal shares of all rows, ascending; one for each thread, and fewer shares where there are few bytes to read."""
    rows = sum(map(len, parts))
    work = rows * parts[0].codes.shape[1] * parts[0].codes.itemsize * max(1, queries // 4)
    shares = max(1, min(threads, work // LEAST))
    edges = [rows * share // shares for share in range(shares + 1)]
    pieces: list[list[Piece]] = [[] for _ in range(shares)]
    begin = 0
    for part in parts:
        for share in range(shares):
            start, stop = max(edges[share], begin), min(edges[share + 1], begin + len(part))
            if start < stop:
                pieces[share].append((part, start - begin, stop - begin))
        begin += len(part)
    return pieces


def _side_by_side(read: Callable[[list[Piece]], Best], pieces: list[list[Piece]]) -> list[Best]:
    """Read every share in a thread of its own, the first in this thread; ctypes releases the interpreter lock."""
    others = [_pool(len(pieces) - 1).submit(read, share) for share in pieces[1:]]
    return [read(pieces[0]), *(other.result() for other in others)]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="scan")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of the threads
