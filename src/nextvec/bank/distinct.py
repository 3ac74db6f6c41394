"""Which rows of a bank hold the same vector. Exams, search, contexts and training all use this definition."""

# Axes: N rows, D width, F forms (rows with different bits), U distinct vectors, S sketch, C cells, P pairs or vectors.

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt64

from nextvec.bank.hashing import row_hashes

BLOCK = 65_536
ROUNDING = 1e-3  # largest distance of two roundings of one unit vector to float16: one unit in the last place each, 2**-10
SKETCH, SAMPLE = 8, 256  # directions, and rows that they are taken from
PAIRS, LOOKED_UP = 4_096, 16_384  # pairs compared at once, vectors looked up at once
LOST = 1e-5  # rounding error of a coordinate of a sketch in float32


@dataclass(frozen=True, eq=False)
class Distinct:
    """The distinct vectors of a bank, each named by the first row that holds it.

    One text that is encoded in two batches has two vectors that differ in the
    last bits. Rows are decided in the order of the bank. A row holds the vector of
    the first earlier row that names a vector and lies within ``ROUNDING``. If there
    is none, the row names a new vector. In a series of rows, each near the next,
    rows farther apart than ``ROUNDING`` from the naming row get another name. A
    vector from outside the bank equals that of the nearest row, if this row lies
    within ``ROUNDING``.

    Attributes:
        firsts: the first row of each vector, ascending.
        numbers: for each row, which of ``firsts`` holds the same vector.
    """

    firsts: Int64[np.ndarray, " U"]
    numbers: Int64[np.ndarray, " N"]
    _rows: Float[np.ndarray, "N D"] = field(repr=False)

    @staticmethod
    def of(rows: Float[np.ndarray, "N D"]) -> "Distinct":
        """The distinct vectors of unit rows.

        Time and memory grow linearly with the number of rows. The exception are thousands of different rows within about
        0.03 of each other: they share cells and are compared with each other.
        """
        forms, number_of_form = _first_of_each(row_hashes(rows))
        cells = _Cells(rows, forms)
        kept, number = np.unique(_joined(cells), return_inverse=True)
        found = Distinct(forms[kept], number[number_of_form], rows)
        found.__dict__["_cells"] = cells  # the cached property below would find them again
        return found

    @staticmethod
    def named(rows: Float[np.ndarray, "N D"], classes: Int64[np.ndarray, " N"]) -> "Distinct":
        """What :meth:`of` finds for these rows, made of its :attr:`classes`; the rows are read when a vector is looked up."""
        firsts, numbers = np.unique(classes, return_inverse=True)
        return Distinct(firsts, numbers.astype(np.int64), rows)

    def __len__(self) -> int:
        return len(self.firsts)

    @cached_property
    def classes(self) -> Int64[np.ndarray, " N"]:
        """For each row, the first row that holds the same vector."""
        return self.firsts[self.numbers]

    @cached_property
    def counts(self) -> Int64[np.ndarray, " U"]:
        """For each vector, how many rows hold it."""
        return np.bincount(self.numbers, minlength=len(self.firsts)).astype(np.int64)

    def count(self, row: int) -> int:
        """How many rows hold the vector of ``row``."""
        return int(self.counts[self.numbers[row]])

    def rows(self, row: int) -> Int64[np.ndarray, " rows"]:
        """All rows that hold the vector of ``row``, ascending."""
        order, ends = self._by_number
        number = self.numbers[row]
        return order[ends[number] - self.counts[number] : ends[number]]

    def find(self, vectors: Float32[np.ndarray, "P D"]) -> Int64[np.ndarray, " P"]:
        """For each unit vector, the first row that holds it; -1 where none does.

        A row of the bank, brought to unit length, finds its own vector, unless a row of another vector lies nearer to it
        than its own rounding.
        """
        found = np.full(len(vectors), -1, np.int64)
        for start in range(0, len(vectors), LOOKED_UP):
            rows = self._cells.nearest(vectors[start : start + LOOKED_UP])
            found[start : start + LOOKED_UP] = np.where(rows >= 0, self.classes[rows], -1)
        return found

    def cells(self, vectors: Float32[np.ndarray, "P D"]) -> list[list[int]]:
        """Numbers of the cells that each vector lies in; two vectors within ROUNDING share one."""
        keys, which = self._cells.touched(self._cells.sketches_of(vectors))
        found: list[list[int]] = [[] for _ in vectors]
        for key, n in zip(keys.tolist(), which.tolist(), strict=True):
            found[n].append(key)
        return found

    @cached_property
    def _cells(self) -> "_Cells":
        return _Cells(self._rows, _first_of_each(row_hashes(self._rows))[0])

    @cached_property
    def _by_number(self) -> tuple[Int64[np.ndarray, " N"], Int64[np.ndarray, " U"]]:
        return np.argsort(self.numbers, kind="stable"), np.cumsum(self.counts)


def _first_of_each(hashes: UInt64[np.ndarray, " N"]) -> tuple[Int64[np.ndarray, " F"], Int64[np.ndarray, " N"]]:
    """The first place of each hash, ascending, and for each place the number of its hash in that order."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return first[order].astype(np.int64), rank[inverse]


class _Cells:
    """Rows with different bits, sorted into cells, so that all rows within ROUNDING of a vector are found.

    A sketch is the projection of a vector on a few orthonormal directions. A
    projection shortens distances, so the sketches of two vectors within
    ROUNDING differ by at most that in each coordinate, and boxes of that size
    around them have a point in common. Each row is entered in every cell that its box
    touches. A vector is looked up in every cell that its box touches, so it
    shares a cell with every row within ROUNDING.
    """

    def __init__(self, rows: Float[np.ndarray, "N D"], forms: Int64[np.ndarray, " F"]) -> None:
        self.rows, self.forms = rows, forms
        # Few rows share a cell along the directions in which a sample varies most.
        sample = rows[forms[:: max(1, len(forms) // SAMPLE)]].astype(np.float32)
        self._directions = np.linalg.svd(sample - sample.mean(0), full_matrices=False)[2][:SKETCH].T.copy()
        blocks = (forms[start : start + BLOCK] for start in range(0, len(forms), BLOCK))
        self.sketches = np.concatenate([self.sketches_of(rows[block].astype(np.float32)) for block in blocks])
        self._width = np.clip(self.sketches.std(0), 4 * ROUNDING, 20 * ROUNDING)  # few rows in a cell, few on a border
        keys, places = self.touched(self.sketches)
        order = np.argsort(keys, kind="stable")
        self.keys, self.places = keys[order], places[order]

    def sketches_of(self, vectors: Float32[np.ndarray, "P D"]) -> Float32[np.ndarray, "P S"]:
        return vectors @ self._directions

    def nearest(self, vectors: Float32[np.ndarray, "P D"]) -> Int64[np.ndarray, " P"]:
        """The row nearest to each vector, the lower one in a tie; -1 where none lies within ROUNDING."""
        sketches = self.sketches_of(vectors)
        keys, which = self.touched(sketches)
        first, stop = np.searchsorted(self.keys, keys), np.searchsorted(self.keys, keys, side="right")
        counts = stop - first
        which = np.repeat(which, counts)
        entries = np.arange(len(which)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        forms = self.places[entries]
        near = ((self.sketches[forms] - sketches[which]) ** 2).sum(1) <= (ROUNDING + LOST) ** 2
        which, forms = which[near], forms[near]
        apart = _squares(self.rows, self.forms[forms], vectors, which)
        order = np.lexsort((-forms, -apart))  # the last assignment stays, which is the nearest row
        order = order[apart[order] <= ROUNDING**2]
        found = np.full(len(vectors), -1, np.int64)
        found[which[order]] = self.forms[forms[order]]
        return found

    def touched(self, sketches: Float32[np.ndarray, "P S"]) -> tuple[UInt64[np.ndarray, " C"], Int64[np.ndarray, " C"]]:
        """The hash of every cell that a box touches, and the number of the sketch of this box."""
        half = ROUNDING / 2 + LOST
        cells = np.floor((sketches - half) / self._width)
        high = np.floor((sketches + half) / self._width)
        places = np.arange(len(sketches), dtype=np.int64)
        for axis in np.flatnonzero((high > cells).any(axis=0)).tolist():
            twice = np.flatnonzero(high[places, axis] > cells[:, axis])
            other = cells[twice]
            other[:, axis] += 1
            places, cells = np.concatenate([places, places[twice]]), np.concatenate([cells, other])
        return row_hashes(cells + 0.0), places  # + 0.0: one zero, not two


def _joined(cells: _Cells) -> Int64[np.ndarray, " F"]:
    """For each form, the form that names its vector: the lowest one within ROUNDING that names itself, or its own.

    Forms are decided in order, so a chain of rows, each near the next, ends up as several vectors.
    """
    rows, forms = cells.rows, cells.forms
    first = np.arange(len(forms), dtype=np.int64)
    if rows.dtype != np.float16:  # forms with equal float16 roundings are joined first, because they may be many
        blocks = (forms[start : start + BLOCK] for start in range(0, len(forms), BLOCK))
        lowest, number = _first_of_each(np.concatenate([row_hashes(rows[block].astype(np.float16)) for block in blocks]))
        first = lowest[number]
    names = first.tolist()
    for later, earlier in _near_pairs(cells, first == np.arange(len(forms))).tolist():
        if names[later] == later and names[earlier] == earlier:
            names[later] = earlier
    return np.array(names, np.int64)[first]


def _near_pairs(cells: _Cells, wanted: Bool[np.ndarray, " F"]) -> Int64[np.ndarray, "P 2"]:
    """Pairs of wanted forms within ROUNDING, the later one first, in the order of the later and then the earlier one."""
    found = [np.empty((0, 2), np.int64)]
    for one, two in _neighbours(cells.keys, cells.places):
        kept = wanted[one] & wanted[two] & (one != two)
        a, b = np.minimum(one, two)[kept], np.maximum(one, two)[kept]
        near = ((cells.sketches[a] - cells.sketches[b]) ** 2).sum(1) <= (ROUNDING + LOST) ** 2
        a, b = a[near], b[near]
        same = _squares(cells.rows, cells.forms[a], cells.rows, cells.forms[b]) <= ROUNDING**2
        found.append(np.stack([b[same], a[same]], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _squares(
    rows: Float[np.ndarray, "N D"], a: Int64[np.ndarray, " P"], others: Float[np.ndarray, "M D"], b: Int64[np.ndarray, " P"]
) -> Float32[np.ndarray, " P"]:
    """The squared distance of each pair."""
    squares = np.empty(len(a), np.float32)
    for start in range(0, len(a), PAIRS):
        part = slice(start, start + PAIRS)
        apart = rows[a[part]].astype(np.float32) - others[b[part]].astype(np.float32)
        squares[part] = np.einsum("pd,pd->p", apart, apart)
    return squares


def _neighbours(
    keys: UInt64[np.ndarray, " C"], named: Int64[np.ndarray, " C"]
) -> Iterator[tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]]:
    """Pairs of entries of ``named`` with equal keys, which are sorted: first those one place apart, then two, and so on."""
    step, first = 1, np.arange(len(keys), dtype=np.int64)
    while True:
        first = first[first + step < len(keys)]
        first = first[keys[first] == keys[first + step]]  # equal at this distance means equal at all smaller ones
        if not len(first):
            return
        yield named[first], named[first + step]
        step += 1
