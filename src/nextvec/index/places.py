"""The mapping between row numbers and the places that a search reads."""

# Axes: N rows of the bank, U distinct vectors, S places that are searched, D width, A rows that a mask knows.

from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int64

from nextvec.bank import Distinct

SPARSE = 0.5  # below this share of distinct rows, a copy of the distinct rows is searched instead of all rows


class Places:
    """Converts row numbers to search places and back.

    Rows are numbered as in the bank; added rows follow. A search reads places.
    Usually the places are the bank's rows, and rows that repeat an earlier one
    are masked. Where most rows repeat one, the places are a copy of the first
    rows of all distinct vectors. The added rows follow in both cases.

    Attributes:
        compact: whether the places are a copy of the distinct rows.
        searched: number of places before the added rows.
    """

    def __init__(self, distinct: Distinct, copied: bool = False) -> None:
        """
        Args:
            copied: the places are a copy of the distinct rows in any case.
        """
        self.distinct = distinct
        self.rows = len(distinct.numbers)
        self.compact = copied or len(distinct) < SPARSE * self.rows
        self.searched = len(distinct) if self.compact else self.rows
        self._none_repeats = len(distinct) == self.rows

    def read(self, rows: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "S D"]:
        """The rows to search: the bank's rows, or a copy of the distinct ones."""
        return rows[self.distinct.firsts] if self.compact else rows

    def of(self, names: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
        """The place of each row's vector."""
        if self._none_repeats:
            return names
        if names.max(initial=-1) < self.rows:
            return self._of_rows[names]
        held = self._of_rows[np.minimum(names, self.rows - 1)]
        return np.where(names < self.rows, held, names - self.rows + self.searched)

    def names(
        self, places: Int64[np.ndarray, "..."], allowed: Bool[np.ndarray, " A"] | None = None
    ) -> Int64[np.ndarray, "..."]:
        """The first row with the vector at each place; with ``allowed``, the first allowed one; -1 stays -1."""
        if self._none_repeats:
            return places
        own = (places >= 0) & (places < self.searched)
        inside = np.where(own, places, 0)
        firsts = self.distinct.firsts[inside] if self.compact else inside
        if allowed is not None:
            firsts = self._first_allowed(allowed)[self.distinct.numbers[firsts]]
        return np.where(own, firsts, np.where(places < 0, -1, places - self.searched + self.rows))

    def mask(self, allowed: Bool[np.ndarray, " A"] | None, added: int) -> Bool[np.ndarray, " M"] | None:
        """The places whose vector an allowed row holds; None for all places.

        Args:
            added: number of added rows.
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
        first[self.distinct.numbers[rows]] = rows  # the last assignment stays, which is the lowest row
        return first
