"""All rows against some queries: which score highest, and how many score above a given product.

Rows are *read* in one form and *decided* in another. What is read may be
rounded (float16, int8) and summed in any order; it only has to rule rows out.
For whatever it cannot rule out, :func:`products` decides: double sums in one
order, rounded to float32 once, the same bits on every processor and in numpy.
So a result does not depend on the form that is read, on the number of queries
or threads, or on whether there is compiled code.

Why nothing is missed. A row is ``x = s c + e``: its codes ``c``, its scale
``s``, and an error whose length is stored, rounded up. A query that is read
beside int8 codes is ``q = t d + f`` in the same way, with 16-bit codes. By
Cauchy and Schwarz

    ``|x q - s t (c d)|  <=  |e| |q| + |s c| |f|``

and ``c d`` is a sum of whole numbers, without rounding. Sums of floats are
rounded, by at most ``D 2^-24 |x| |q|`` in whatever order (Higham 2002, 3.1).
``slack`` and ``spread`` below are these terms; floats have codes without error,
or float16's. A row is decided whenever its bound exceeds the worst that is kept.
"""

# Axes: Q queries, N rows, D width, K neighbours, A rows that a mask knows, C rows that are chosen.

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int16, Int64, Num

from nextvec.errors import DataError
from nextvec.kernels.library import library

RowFormat = Literal["float32", "float16", "int8"]
FORMATS = ("float32", "float16", "int8")  # in the order of scan.h
BLOCK = 4_096  # rows of one step without compiled code, and of rounding
QUERIES = 256  # that share one pass: as many as stay in a second-level cache
ROWS = 16  # of scan.c
LEAST = 4 << 20  # bytes that are worth a thread of their own
LARGEST = 1e30  # product of a query's and a row's length: beyond, sums leave float32
UP = 1 + 1e-6  # rounds a length up, whatever its sum lost
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Stored:
    """Some rows, as they decide and as they are read.

    Attributes:
        rows: [N, D] float16 or float32, what decides.
        codes: [N, D] float32, float16 or int8, what is read; often the rows themselves.
        scales, errors: [N] of int8 codes: a row is its scale times its codes, and an error no longer than this; else [0].
        longest: no row is longer.
        error: no row is further from what its codes stand for.
        first: the name of row 0; the others follow.
    """

    rows: Float[np.ndarray, "N D"]
    codes: Num[np.ndarray, "N D"]
    scales: Float32[np.ndarray, " S"]
    errors: Float32[np.ndarray, " S"]
    longest: float
    error: float
    first: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def c(self) -> "_StoredC":
        """The same for compiled code."""
        forms = (FORMATS.index(self.codes.dtype.name), FORMATS.index(self.rows.dtype.name))
        arrays = (self.codes, self.rows, self.scales, self.errors)
        return _StoredC(*map(_at, arrays), self.first, self.rows.shape[1], *forms)


Piece = tuple[Stored, int, int]  # rows start:stop


@dataclass(frozen=True, eq=False)
class Best:
    """The ``K`` best rows of each query, best first and the lower row first in a tie; -1 with -inf where there are no more.

    Attributes:
        decided: rows whose deciding product was taken, over all queries.
    """

    scores: Float32[np.ndarray, "Q K"]
    rows: Int64[np.ndarray, "Q K"]
    decided: int


@dataclass(frozen=True, eq=False)
class _Queries:
    """Queries as rows are read beside them: ``slack`` and ``spread`` bound how far what is read is below and above."""

    vectors: Float32[np.ndarray, "Q D"]
    codes: Int16[np.ndarray, "QC DC"]
    scales: Float32[np.ndarray, " Q"]
    lengths: Float32[np.ndarray, " Q"]
    slack: Float32[np.ndarray, " Q"]
    spread: Float32[np.ndarray, " Q"]

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def c(self) -> "_QueriesC":
        """The same for compiled code."""
        return _QueriesC(*map(_at, (self.vectors, self.codes, self.scales, self.lengths, self.slack)), len(self))


def stored(
    rows: Float[np.ndarray, "N D"], form: RowFormat, first: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> Stored:
    """Rows to be read as ``form``: themselves where they are stored so, rounded copies of them where not."""
    none = np.empty(0, np.float32)
    if rows.dtype == form:
        return Stored(rows, rows, none, none, longest(rows), 0.0, first)
    codes = aligned(rows.shape, np.dtype(form))
    scales, errors = (np.empty(len(rows), np.float32) for _ in range(2))
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        codes[part], scales[part], errors[part] = _rounded(rows[part].astype(np.float32), form)
        if progress is not None:
            progress("rounding", min(start + BLOCK, len(rows)), len(rows))
    error = float(errors.max(initial=0))
    if form != "int8":
        scales, errors = none, none
    return Stored(rows, codes, scales, errors, longest(rows), error, first)


def longest(rows: Float[np.ndarray, "N D"]) -> float:
    """At least the length of the longest row."""
    loaded = _loaded()
    if loaded is not None:
        square = loaded.nextvec_scan_longest(_at(rows), FORMATS.index(rows.dtype.name), len(rows), rows.shape[1])
    else:
        blocks = (rows[start : start + BLOCK].astype(np.float32) for start in range(0, len(rows), BLOCK))
        square = max((float(np.einsum("nd,nd->n", block, block).max()) for block in blocks), default=0.0)
    return float(np.sqrt(square)) * UP * (1 + rows.shape[1] * 2**-23) + 1e-30


def products(
    rows: Float[np.ndarray, "N D"], chosen: Int64[np.ndarray, " C"], query: Float32[np.ndarray, " D"]
) -> Float32[np.ndarray, " C"]:
    """The products that decide, of chosen rows with one query.

    Two floats' product is exact in double. Lane ``j`` of 16 adds places ``j``,
    ``j + 16``, ... in turn; the lanes' halves are added onto each other until
    one is left, which is rounded to float32.
    """
    loaded = _loaded()
    if loaded is not None:
        out = np.empty(len(chosen), np.float32)
        loaded.nextvec_scan_products(
            _at(rows), FORMATS.index(rows.dtype.name), rows.shape[1], _at(chosen), len(chosen), _at(query), _at(out)
        )
        return out
    width = -(-rows.shape[1] // 16) * 16
    exact = np.zeros((len(chosen), width))
    exact[:, : rows.shape[1]] = rows[chosen].astype(np.float64) * query.astype(np.float64)
    lanes = np.zeros((len(chosen), 16))
    for place in range(0, width, 16):
        lanes += exact[:, place : place + 16]
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0].astype(np.float32)


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
        parts: all read as the same form, their names ascending.
        queries: finite, and no longer than leaves products finite.
        excluded: for each query, the names of rows that are no answer.
        allowed: by name, the rows that may be; rows beyond its end may not.
        threads: that read at the same time; few rows are read by fewer.
    """
    found: list[Best] = []
    for block in _blocks(len(queries)):
        own, names = queries[block], None if excluded is None else excluded[block]
        if _loaded() is None:
            found.append(_nearest_torch(parts, _read_beside(parts, own), k, names, allowed))
        else:
            found.append(_nearest_compiled(parts, own, k, names, allowed, threads))
    if len(found) == 1:
        return found[0]
    return Best(
        np.concatenate([best.scores for best in found]),
        np.concatenate([best.rows for best in found]),
        sum(best.decided for best in found),
    )


def above(
    parts: Sequence[Stored],
    queries: Float32[np.ndarray, "Q D"],
    scores: Float32[np.ndarray, " Q"],
    threads: int = 1,
) -> tuple[Int64[np.ndarray, " Q"], Int64[np.ndarray, " Q"]]:
    """For each query, how many rows have a larger deciding product than its score, and how many the very same."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for block in _blocks(len(queries)):
        beside = _read_beside(parts, queries[block])
        if _loaded() is None:
            found.append(_above_torch(parts, beside, scores[block]))
        else:
            found.append(_above_compiled(parts, beside, scores[block], threads))
    return np.concatenate([higher for higher, _ in found]), np.concatenate([tied for _, tied in found])


def best_of(
    scores: Float32[np.ndarray, "Q C"], rows: Int64[np.ndarray, "Q C"], k: int
) -> tuple[Float32[np.ndarray, "Q K"], Int64[np.ndarray, "Q K"]]:
    """The ``k`` best of at least as many, the lower row first in a tie."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array that begins where a cache line does: reading one that does not touches two lines at every step."""
    size = prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -_at(raw) % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _rounded(
    rows: Float32[np.ndarray, "B D"], form: RowFormat
) -> tuple[Num[np.ndarray, "B D"], Float32[np.ndarray, " B"], Float32[np.ndarray, " B"]]:
    """Codes, scales, and lengths of what they leave out, rounded up."""
    scales = np.ones(len(rows), np.float32)
    if form == "int8":
        scales = np.abs(rows).max(axis=1, initial=0) / np.float32(127)
        scales[scales < 1e-30] = 1  # a row of zeros, or nearly, is all error
        codes = np.rint(rows / scales[:, None]).astype(np.int8)
    else:
        codes = rows.astype(form)
    left_out = rows - codes.astype(np.float64) * scales[:, None]
    return codes, scales, (_lengths(left_out) * UP).astype(np.float32)


def check_finite(parts: Sequence[Stored], queries: Float32[np.ndarray, "Q D"]) -> None:
    """
    Raises:
        DataError: a product of a query and a row may be no number.
    """
    if not _lengths(queries).max(initial=0) * max(part.longest for part in parts) < LARGEST:
        raise DataError("a query is not finite (NaN or infinity), or too long for its products to be")


def _read_beside(parts: Sequence[Stored], queries: Float32[np.ndarray, "Q D"]) -> _Queries:
    count, dim = queries.shape
    vectors = queries
    if count > 1 or not queries.flags.c_contiguous:
        vectors = aligned((count, dim), np.dtype(np.float32))
        vectors[:] = queries
    most, longest, error = _terms(parts)
    coded = (count, dim) if most else (0, 0)
    room = np.empty(16 * count + 2 * prod(coded), np.uint8)  # one for all: a query of one row is over in microseconds
    bounds, codes = room[: 16 * count].view(np.float32).reshape(4, count), room[16 * count :].view(np.int16).reshape(coded)
    found = _Queries(vectors, codes, *bounds)
    loaded = _loaded()
    if loaded is None:
        check_finite(parts, queries)
        _bound(found, most, longest, error)
    else:
        start, step = _at(room), 4 * count
        places = (start + 4 * step, start, start + step, start + 2 * step, start + 3 * step)
        found.__dict__["c"] = _QueriesC(_at(vectors), *places[:4], count)
        if not loaded.nextvec_scan_beside(_at(vectors), count, dim, most, longest, error, UP, *places):
            check_finite(parts, queries)
    return found


def _terms(parts: Sequence[Stored]) -> tuple[int, float, float]:
    """The largest code of a query, 0 where rows are read as floats; what codes stand for is no longer; and no more wrong."""
    error, longest = parts[0].error, parts[0].longest
    if len(parts) > 1:
        error, longest = max(part.error for part in parts), max(part.longest for part in parts)
    # No sum of products may leave 32 bits.
    most = min(32_767, (2**31 - 1) // (127 * parts[0].rows.shape[1])) if parts[0].codes.itemsize == 1 else 0
    return most, longest + error, error


def _bound(queries: _Queries, most: int, longest: float, error: float) -> None:
    """Fill in the codes and the bounds of queries; ``nextvec_scan_beside`` is the same."""
    vectors, lost = queries.vectors, 0.0
    lengths = _lengths(vectors)
    if most:  # the rows' errors are added row by row to what is read
        queries.scales[:] = np.abs(vectors).max(axis=1) * np.float32(UP / most) + np.float32(1e-36)
        queries.codes[:] = np.rint(vectors / queries.scales[:, None])
        lost = _lengths(vectors - queries.codes * queries.scales[:, None].astype(np.float64))
    # 16 more roundings than the sum has: of the lengths, the scales, the deciding product and the comparison itself.
    rounding = (vectors.shape[1] + 16) * 2.0**-24 * UP * longest * (lengths + lost) + 1e-36
    slack = longest * lost + rounding + (0 if most else error * lengths)
    spread = slack + (2 * error * UP * lengths if most else 0)
    for out, bound in ((queries.lengths, lengths), (queries.slack, slack), (queries.spread, spread)):
        out[:] = bound * UP


def _lengths(vectors: Float[np.ndarray, "B D"]) -> Float64[np.ndarray, " B"]:
    """Rounded up."""
    return np.sqrt(np.einsum("bd,bd->b", vectors, vectors, dtype=np.float64)) * UP


def _blocks(queries: int) -> Iterator[slice]:
    return (slice(start, min(start + QUERIES, queries)) for start in range(0, max(queries, 1), QUERIES))


# Compiled.

_Pointer = ctypes.c_void_p


class _StoredC(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("codes", "rows", "scales", "errors")),
        *((name, ctypes.c_int64) for name in ("first", "dim")),
        *((name, ctypes.c_int32) for name in ("code", "row")),
    )


class _QueriesC(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("vectors", "codes", "scales", "lengths", "slack")),
        ("count", ctypes.c_int64),
    )


class _AskedC(ctypes.Structure):
    _fields_ = (
        ("allowed", _Pointer),
        ("allowed_rows", ctypes.c_int64),
        ("excluded", _Pointer),
        ("ends", _Pointer),
        ("words", ctypes.c_int64),
    )


class _PieceC(ctypes.Structure):
    _fields_ = (("part", _Pointer), ("start", ctypes.c_int64), ("stop", ctypes.c_int64))


class _ScratchC(ctypes.Structure):
    _fields_ = tuple((name, _Pointer) for name in ("wide", "sums", "products"))


@cache
def _loaded() -> ctypes.CDLL | None:
    """The compiled functions with their types; None where torch computes."""
    loaded = library()
    if loaded is None:
        return None
    pointer, whole = ctypes.POINTER, ctypes.c_int64
    loaded.nextvec_scan_longest.argtypes = [_Pointer, ctypes.c_int32, whole, whole]
    loaded.nextvec_scan_longest.restype = ctypes.c_float
    loaded.nextvec_scan_products.argtypes = [_Pointer, ctypes.c_int32, whole, _Pointer, whole, _Pointer, _Pointer]
    loaded.nextvec_scan_products.restype = None
    rows = [pointer(_StoredC), pointer(_QueriesC), whole, whole]
    loaded.nextvec_scan_beside.argtypes = [_Pointer, whole, whole, ctypes.c_int32, *3 * [ctypes.c_double], *5 * [_Pointer]]
    terms = [_Pointer, whole, whole, ctypes.c_int32, *3 * [ctypes.c_double]]
    loaded.nextvec_scan_nearest.argtypes = [_Pointer, whole, *terms, pointer(_AskedC), _Pointer, _Pointer, whole]
    loaded.nextvec_scan_nearest.restype = whole
    loaded.nextvec_scan_above.argtypes = [*rows, _Pointer, _Pointer, _Pointer, _Pointer, pointer(_ScratchC)]
    loaded.nextvec_scan_above.restype = whole
    return loaded


def _at(array: np.ndarray) -> int:
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of shape {array.shape} is not contiguous")
    return array.__array_interface__["data"][0]


class _Scratch:
    """Room for one thread; it must live as long as the structure that points at it."""

    def __init__(self, queries: _Queries) -> None:
        dim, count = queries.vectors.shape[1], len(queries)
        self._room = aligned((ROWS, dim + 2 * count), np.dtype(np.float32))
        start = _at(self._room)
        self.c = _ScratchC(start, start + 4 * ROWS * dim, start + 4 * ROWS * (dim + count))


def _nearest_compiled(
    parts: Sequence[Stored],
    queries: Float32[np.ndarray, "Q D"],
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None,
    allowed: Bool[np.ndarray, " A"] | None,
    threads: int,
) -> Best:
    loaded = _loaded()
    assert loaded is not None
    count, dim = queries.shape
    asking = (_at(np.ascontiguousarray(queries)), count, dim, *_terms(parts), UP)
    mask, names, ends = allowed, None, None
    if allowed is not None:
        mask = np.ascontiguousarray(allowed)
    if excluded is not None:
        names = np.concatenate([*excluded, np.empty(0, np.int64)])
        ends = np.cumsum([len(barred) for barred in excluded], dtype=np.int64)
    whole = -(-(parts[-1].first + len(parts[-1])) // 64)
    asked = _AskedC(_maybe(mask), 0 if mask is None else len(mask), _maybe(names), _maybe(ends), whole)

    def read(pieces: list[Piece]) -> Best:
        scores, rows = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
        given = (_PieceC * len(pieces))(*((ctypes.addressof(part.c), start, stop) for part, start, stop in pieces))
        decided = loaded.nextvec_scan_nearest(given, len(pieces), *asking, asked, _at(scores), _at(rows), k)
        if decided == -1:
            check_finite(parts, queries)
        if decided < 0:
            raise MemoryError(f"no memory to search with {count} queries")
        return Best(scores, rows, decided)

    found = _side_by_side(read, _pieces(parts, count, threads))
    if len(found) == 1:
        return found[0]
    together = (np.concatenate([best.scores for best in found], 1), np.concatenate([best.rows for best in found], 1))
    return Best(*best_of(*together, k), sum(best.decided for best in found))


def _maybe(array: np.ndarray | None) -> int | None:
    return None if array is None else _at(array)


def _above_compiled(
    parts: Sequence[Stored], queries: _Queries, scores: Float32[np.ndarray, " Q"], threads: int
) -> tuple[Int64[np.ndarray, " Q"], Int64[np.ndarray, " Q"]]:
    loaded = _loaded()
    assert loaded is not None
    own = np.ascontiguousarray(scores)

    def read(pieces: list[Piece]) -> Int64[np.ndarray, "2 Q"]:
        counts = np.zeros((2, len(queries)), np.int64)
        scratch, beside = _Scratch(queries), queries.c
        for part, start, stop in pieces:
            loaded.nextvec_scan_above(
                part.c, beside, start, stop, _at(own), _at(queries.spread), _at(counts[0]), _at(counts[1]), scratch.c
            )
        return counts

    higher, tied = sum(_side_by_side(read, _pieces(parts, len(queries), threads)), np.zeros((2, len(queries)), np.int64))
    return higher, tied


def _pieces(parts: Sequence[Stored], queries: int, threads: int) -> list[list[Piece]]:
    """Equal shares of all rows, one for each thread that is worth its while, names ascending in each."""
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


def _side_by_side(read: Callable[[list[Piece]], T], pieces: list[list[Piece]]) -> list[T]:
    """One thread a share; compiled code lets go of the interpreter. The first share is this thread's own."""
    others = [_pool(len(pieces) - 1).submit(read, share) for share in pieces[1:]]
    return [read(pieces[0]), *(other.result() for other in others)]


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="scan")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a copy of the process


# Without compiled code.


def _products_of_blocks(parts: Sequence[Stored], queries: _Queries) -> Iterator[tuple[Stored, int, Float32[np.ndarray, "Q B"]]]:
    """The rows themselves are read, not their codes: numbers that a processor must widen first save it nothing."""
    vectors = torch.from_numpy(queries.vectors)
    for part in parts:
        for start in range(0, len(part), BLOCK):
            block = torch.from_numpy(np.array(part.rows[start : start + BLOCK])).float()
            yield part, start, (vectors @ block.T).numpy()


def _nearest_torch(
    parts: Sequence[Stored],
    queries: _Queries,
    k: int,
    excluded: Sequence[Int64[np.ndarray, "..."]] | None,
    allowed: Bool[np.ndarray, " A"] | None,
) -> Best:
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
        for q in range(len(queries)):
            # At least k rows of the block decide above its k-th best, less what reading may be wrong by.
            own = np.partition(read[q], -k)[-k] - queries.slack[q] if read.shape[1] >= k else -np.inf
            floor = max(scores[q, -1], own) - queries.slack[q]
            chosen = np.flatnonzero((read[q] >= floor) & (read[q] > -np.inf))
            decided += len(chosen)
            exact = products(part.rows, start + chosen, queries.vectors[q])
            found = (np.concatenate([scores[q], exact])[None], np.concatenate([rows[q], names[chosen]])[None])
            scores[q : q + 1], rows[q : q + 1] = best_of(*found, k)
    return Best(scores, rows, decided)


def _above_torch(
    parts: Sequence[Stored],
    queries: _Queries,
    scores: Float32[np.ndarray, " Q"],
) -> tuple[Int64[np.ndarray, " Q"], Int64[np.ndarray, " Q"]]:
    higher, tied = (np.zeros(len(queries), np.int64) for _ in range(2))
    for part, start, read in _products_of_blocks(parts, queries):
        for q in range(len(queries)):
            surely = read[q] > scores[q] + queries.slack[q]
            chosen = np.flatnonzero(~surely & (read[q] >= scores[q] - queries.slack[q]))
            exact = products(part.rows, start + chosen, queries.vectors[q])
            higher[q] += surely.sum() + (exact > scores[q]).sum()
            tied[q] += (exact == scores[q]).sum()
    return higher, tied
