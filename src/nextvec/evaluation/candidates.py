"""The candidates of every scored row of an exam: computed once, in a compact form, and used by every ranking."""

# Axes: R scored rows, B of them in one block, C columns, N rows of the bank, H held columns.

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float32, Int64


@dataclass(frozen=True, eq=False)
class CandidateSets:
    """For each scored row, the columns that its truth is ranked among.

    A row's candidates are the first ``limits[r]`` columns, without those that
    its document holds up to and including the row. That set grows from row to
    row, so each document has one list, ordered by first occurrence, and a row
    excludes a prefix of it. Memory: 8 bytes for each row of the scored
    documents, 40 for each scored row, 8 for each column.

    Attributes:
        columns: [C] items of the bank: the candidates in order, then the truths that are not among them.
        truths: [R] the column of each row's truth.
        held: [H] columns that the documents hold, document after document, each column once per document.
        starts, stops: [R] the part of ``held`` that each row excludes.
        limits: [R] each row's candidates lie before this column.
        counts: [R] candidates of each row, the truth among them.
    """

    columns: Int64[np.ndarray, " C"]
    truths: Int64[np.ndarray, " R"]
    held: Int64[np.ndarray, " H"]
    starts: Int64[np.ndarray, " R"]
    stops: Int64[np.ndarray, " R"]
    limits: Int64[np.ndarray, " R"]
    counts: Int64[np.ndarray, " R"]

    @staticmethod
    def of(
        rows: Int64[np.ndarray, " R"],
        firsts: Int64[np.ndarray, " R"],
        classes: Int64[np.ndarray, " N"],
        order: Int64[np.ndarray, " order"],
        pool: int | None,
    ) -> "CandidateSets":
        """The candidates of ``rows`` among the distinct vectors of ``order``.

        Args:
            rows: scored rows, ascending.
            firsts: the first row of each scored row's document.
            classes: for each row of the bank, the first item that holds its vector.
            order: distinct vectors, each named by the first item that holds it; all of ``classes`` among them.
            pool: candidates per row, the truth among them; None for all that are admissible.
        """
        # A row needs pool - 1 columns, and one more for each that its document holds.
        depth = len(order) if pool is None else min(len(order), pool - 1 + int((rows - firsts).max()) + 1)
        columns = np.concatenate([order[:depth], np.setdiff1d(classes[rows], order[:depth])])
        place = np.full(int(order.max()) + 1, -1, dtype=np.int64)
        place[columns] = np.arange(len(columns))
        truths = place[classes[rows]]
        place[columns[depth:]] = -1
        held: list[np.ndarray] = []
        starts, stops, limits, counts = (np.empty(len(rows), dtype=np.int64) for _ in range(4))
        begun = 0
        edges = [*np.flatnonzero(np.diff(firsts, prepend=-1)).tolist(), len(rows)]
        for first, last in pairwise(edges):
            of_document = slice(first, last)
            found, ends = _held(place[classes[firsts[first] : rows[last - 1] + 1]], rows[of_document] - firsts[first])
            starts[of_document], stops[of_document] = begun, begun + ends
            limits[of_document], counts[of_document] = _limits(found, ends, depth, pool)
            held.append(found)
            begun += len(found)
        return CandidateSets(columns, truths, np.concatenate(held), starts, stops, limits, counts)

    def excluded(self, r: int) -> Int64[np.ndarray, " excluded"]:
        """The columns that are no candidates of scored row ``r``; some may lie behind its limit."""
        return self.held[self.starts[r] : self.stops[r]]

    def of_row(self, r: int) -> Int64[np.ndarray, " kept"]:
        """The columns of the candidates of scored row ``r``, without its truth."""
        kept = np.ones(len(self.columns), dtype=bool)
        kept[self.excluded(r)] = False
        return np.flatnonzero(kept[: self.limits[r]])

    def compare(
        self, first: int, scores_BC: Float32[np.ndarray, "B C"]
    ) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " B"]]:
        """For scored rows from ``first`` on, how many candidates score above the truth, and how many tie with it.

        Args:
            scores_BC: of all columns, finite; the excluded ones are overwritten.
        """
        above, tied = (np.empty(len(scores_BC), dtype=np.int64) for _ in range(2))
        block = slice(first, first + len(scores_BC))
        parts = (part[block].tolist() for part in (self.truths, self.starts, self.stops, self.limits))
        for i, (truth, start, stop, limit) in enumerate(zip(*parts, strict=True)):
            scores = scores_BC[i]
            own = scores[truth]
            scores[self.held[start:stop]] = np.nan  # neither above anything nor equal to anything
            candidates = scores[:limit]
            above[i], tied[i] = np.count_nonzero(candidates > own), np.count_nonzero(candidates == own)
        return above, tied


def _held(places: Int64[np.ndarray, " rows"], scored: Int64[np.ndarray, " kept"]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct columns of one document by first occurrence, and how many of them it holds up to each scored row.

    Args:
        places: the column of each row of the document; -1 for a row that has none.
        scored: its scored rows, counted from its first row.
    """
    index = np.sort(np.unique(places, return_index=True)[1])
    index = index[places[index] >= 0]
    return places[index], np.searchsorted(index, scored, side="right")


def _limits(
    held: Int64[np.ndarray, " held"], ends: Int64[np.ndarray, " kept"], depth: int, pool: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Per scored row of one document: the column before which its candidates lie, and their number with the truth."""
    if pool is None:
        return np.full(len(ends), depth), depth - ends + 1
    limits, counts = (np.empty(len(ends), dtype=np.int64) for _ in range(2))
    free = np.ones(depth, dtype=bool)
    done = 0
    for i, end in enumerate(ends.tolist()):
        free[held[done:end]] = False
        done = end
        found = np.flatnonzero(free[: pool - 1 + end])[: pool - 1]
        limits[i], counts[i] = found[-1] + 1 if len(found) else 0, len(found) + 1
    return limits, counts
