"""Distinct vectors among the rows that a search reads: which places it reads, and which rows they stand for."""

# Axes: N rows of the bank, U distinct vectors, S places that are searched, D width, A rows that a mask knows.

from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int64

from nextvec.bank import Distinct

SPARSE = 0.5  # share of distinct rows from which they are read where they lie; below, they are copied side by side


class Places:
    """The places that are searched, and the rows they stand for.

    A name is a row: of the bank, or one that was added, which follow the
    bank's. A place is where a search reads: the bank's rows as they lie, those
    masked that repeat an earlier one; or, where most rows repeat one, the
    first rows of all distinct vectors side by side. Added rows follow.

    Attributes:
        compact: whether distinct rows are copied side by side.
        searched: places before the added rows.
    """

    def __init__(self, distinct: Distinct) -> None:
        self.distinct = distinct
        self.rows = len(distinct.numbers)
        self.compact = len(distinct) < SPARSE * self.rows
        self.searched = len(distinct) if self.compact else self.rows
        self._none_repeats = len(distinct) == self.rows

    def read(self, rows: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "S D"]:
        """The bank's rows as they are searched: themselves, or a copy of the distinct ones."""
        return rows[self.distinct.firsts] if self.compact else rows

    def of(self, names: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """The place of each row's vector."""
        if self._none_repeats:
            return names
        held = self._of_rows[np.minimum(names, self.rows - 1)]
        return np.where(names < self.rows, held, names - self.rows + self.searched)

    def names(
        self, places: Int64[np.ndarray, "..."], allowed: Bool[np.ndarray, " A"] | None = None
    ) -> Int64[np.ndarray, "..."]:
        """The first row that holds what lies at each place, of allowed rows the first of these; -1 stays -1."""
        if self._none_repeats:
            return places
        own = (places >= 0) & (places < self.searched)
        inside = np.where(own, places, 0)
        firsts = self.distinct.firsts[inside] if self.compact else inside
        if allowed is not None:
            firsts = self._first_allowed(allowed)[self.distinct.numbers[firsts]]
        return np.where(own, firsts, np.where(places < 0, -1, places - self.searched + self.rows))

    def mask(self, allowed: Bool[np.ndarray, " A"] | None, added: int) -> Bool[np.ndarray, " M"] | None:
        """Which places may be answers: those of a vector that an allowed row holds; None for all.

        Args:
            added: places behind those of the bank.
        """
        if self._none_repeats or (allowed is None and self.compact):
            return allowed
        if allowed is None:
            return np.concatenate([self._first_only, np.ones(added, bool)]) if added else self._first_only
        mask = np.zeros(self.searched + added, bool)
        mask[self._of_rows[np.flatnonzero(allowed[: self.rows])]] = True
        newer = allowed[self.rows :]
        mask[self.searched : self.searched + len(newer)] = newer
        return mask

    @cached_property
    def repeats(self) -> Int64[np.ndarray, " repeats"]:
        """Places that are read and never answers: rows that repeat an earlier one."""
        if self.compact:
            return np.empty(0, np.int64)
        return np.flatnonzero(~self._first_only)

    @cached_property
    def _first_only(self) -> Bool[np.ndarray, " N"]:
        mask = np.zeros(self.rows, bool)
        mask[self.distinct.firsts] = True
        return mask

    @cached_property
    def _of_rows(self) -> Int64[np.ndarray, " N"]:
        return self.distinct.numbers if self.compact else self.distinct.classes

    def _first_allowed(self, allowed: Bool[np.ndarray, " A"]) -> Int64[np.ndarray, " U"]:
        rows = np.flatnonzero(allowed[: self.rows])[::-1]
        first = np.full(len(self.distinct), -1, np.int64)
        first[self.distinct.numbers[rows]] = rows  # the last of what is assigned stays: the lowest
        return first
