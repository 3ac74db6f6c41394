"""Rows of an index: how they are stored, rounded and multiplied exactly."""

# Axes: N rows, D width, B rows of one block, Q queries, C chosen rows.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Num

from nextvec.errors import DataError
from nextvec.kernels.memory import address, aligned
from nextvec.kernels.scan_library import StoredC, loaded

RowFormat = Literal["float32", "float16", "int8"]
FORMATS = ("float32", "float16", "int8")  # in the order of scan.h
BLOCK = 4_096  # rows that are rounded at once
LARGEST = 1e30  # product of a query's and a row's length; beyond it sums overflow float32
UP = 1 + 1e-6  # factor that rounds a length up by more than its sum can have lost


@dataclass(frozen=True, eq=False)
class Stored:
    """Rows of an index in two forms: the rows that decide, and the codes that are read first.

    Attributes:
        rows: [N, D] float16 or float32; the deciding product reads them.
        codes: [N, D] float32, float16 or int8; every search reads them all. Often the rows themselves.
        scales, errors: [N] with int8 codes: a row is its scale times its codes plus an error of at most this length; else [0].
        longest: upper bound of the length of every row.
        error: upper bound of the distance between every row and what its codes stand for.
        first: number of the first row; the others follow.
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

    def has(self, rows: Int64[np.ndarray, " C"]) -> Bool[np.ndarray, " C"]:
        """Which of the numbers are numbers of these rows."""
        return (rows >= self.first) & (rows < self.first + len(self))

    def between(self, start: int, stop: int) -> "Stored":
        """The rows ``start:stop``, counted from the first row of this part; views, with the same bounds."""
        own = slice(start, stop)
        rows = self.rows[own]
        codes = rows if self.codes is self.rows else self.codes[own]
        return Stored(rows, codes, self.scales[own], self.errors[own], self.longest, self.error, self.first + start)

    def places(self, names: Int64[np.ndarray, " C"]) -> Int64[np.ndarray, " own"]:
        """The places in this part of those rows that lie in it.

        Args:
            names: numbers of rows, ascending.
        """
        begin, end = np.searchsorted(names, (self.first, self.first + len(self)))
        return names[begin:end] - self.first

    @cached_property
    def c(self) -> StoredC:
        """The structure that compiled code takes."""
        forms = (FORMATS.index(self.codes.dtype.name), FORMATS.index(self.rows.dtype.name))
        arrays = (self.codes, self.rows, self.scales, self.errors)
        return StoredC(*map(address, arrays), self.first, self.rows.shape[1], *forms)


def stored(
    rows: Float[np.ndarray, "N D"], form: RowFormat, first: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> Stored:
    """Rows to be read as ``form``: the rows themselves if they have that dtype, otherwise rounded copies of them."""
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
    """An upper bound of the length of the longest row."""
    compiled = loaded()
    if compiled is not None:
        square = compiled.nextvec_scan_longest(address(rows), FORMATS.index(rows.dtype.name), len(rows), rows.shape[1])
    else:
        blocks = (rows[start : start + BLOCK].astype(np.float32) for start in range(0, len(rows), BLOCK))
        square = max((float(np.einsum("nd,nd->n", block, block).max()) for block in blocks), default=0.0)
    return float(np.sqrt(square)) * UP * (1 + rows.shape[1] * 2**-23) + 1e-30


def products(
    rows: Float[np.ndarray, "N D"], chosen: Int64[np.ndarray, " C"], query: Float32[np.ndarray, " D"]
) -> Float32[np.ndarray, " C"]:
    """The deciding products of chosen rows with one query (:func:`products_of_several`)."""
    return products_of_several(rows, chosen, query[None])[0]


def products_of_several(
    rows: Float[np.ndarray, "N D"], chosen: Int64[np.ndarray, " C"], queries: Float32[np.ndarray, "Q D"]
) -> Float32[np.ndarray, "Q C"]:
    """The deciding products of chosen rows with queries.

    The product of two floats is exact in double. Lane ``j`` of 16 sums the
    products at ``j``, ``j + 16``, ... in order. Then the upper half of the lanes
    is added to the lower half until one lane is left, which is rounded to
    float32.
    """
    compiled = loaded()
    out = np.empty((len(queries), len(chosen)), np.float32)
    if compiled is not None:
        compiled.nextvec_scan_products(
            address(rows),
            FORMATS.index(rows.dtype.name),
            rows.shape[1],
            address(chosen),
            len(chosen),
            address(queries),
            len(queries),
            address(out),
        )
        return out
    width = -(-rows.shape[1] // 16) * 16
    wide = rows[chosen].astype(np.float64)
    for query, of_query in zip(queries, out, strict=True):
        exact = np.zeros((len(chosen), width))
        exact[:, : rows.shape[1]] = wide * query.astype(np.float64)
        lanes = np.zeros((len(chosen), 16))
        for place in range(0, width, 16):
            lanes += exact[:, place : place + 16]
        for half in (8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half:]
        of_query[:] = lanes[:, 0]
    return out


def check_finite(parts: Sequence[Stored], queries: Float32[np.ndarray, "Q D"]) -> None:
    """
    Raises:
        DataError: a product of a query and a row may overflow float32, or a query is not finite.
    """
    if not lengths(queries).max(initial=0) * max(part.longest for part in parts) < LARGEST:
        raise DataError("a query is not finite (NaN or infinity), or so long that its products are not")


def lengths(vectors: Float[np.ndarray, "B D"]) -> Float64[np.ndarray, " B"]:
    """The length of each row, rounded up."""
    return np.sqrt(np.einsum("bd,bd->b", vectors, vectors, dtype=np.float64)) * UP


def _rounded(
    rows: Float32[np.ndarray, "B D"], form: RowFormat
) -> tuple[Num[np.ndarray, "B D"], Float32[np.ndarray, " B"], Float32[np.ndarray, " B"]]:
    """Codes, scales, and the length of each rounding error, rounded up."""
    scales = np.ones(len(rows), np.float32)
    if form == "int8":
        scales = np.abs(rows).max(axis=1, initial=0) / np.float32(127)
        scales[scales < 1e-30] = 1  # a row of zeros, or nearly, is all error
        codes = np.rint(rows / scales[:, None]).astype(np.int8)
    else:
        codes = rows.astype(form)
    left_out = rows - codes.astype(np.float64) * scales[:, None]
    return codes, scales, (lengths(left_out) * UP).astype(np.float32)
