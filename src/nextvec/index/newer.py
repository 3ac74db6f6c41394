"""Rows added to an index: finds those whose vector the index already holds."""

# Axes: B rows that are added, D width.

from collections import defaultdict

import numpy as np
from jaxtyping import Float, Int64

from nextvec.bank import Bank
from nextvec.bank.distinct import ROUNDING


class Newer:
    """The added rows of an index, by sketch cell, so that a new row is compared with few of them."""

    def __init__(self, bank: Bank, held: Float[np.ndarray, "held D"]) -> None:
        """
        Args:
            held: rows that were added before, in the order of their numbers.
        """
        self._distinct, self._first = bank.distinct, len(bank.table)
        self._rows: list[np.ndarray] = []
        self._cells: defaultdict[int, list[int]] = defaultdict(list)  # numbers of added rows, from 0
        for row, cells in zip(held, self._distinct.cells(held.astype(np.float32)), strict=True):
            self._enter(row, cells)

    def named(self, rows: Float[np.ndarray, "B D"]) -> tuple[Int64[np.ndarray, " B"], Int64[np.ndarray, " kept"]]:
        """The number of each row, and the positions of the rows that are new, which are entered."""
        wide, kept = rows.astype(np.float32), list[int]()
        names = self._distinct.find(wide)
        for n, cells in enumerate(self._distinct.cells(wide)):
            if names[n] < 0:
                number = self._nearest(wide[n], cells)
                if number is None:
                    number = self._enter(rows[n], cells)
                    kept.append(n)
                names[n] = self._first + number
        return names, np.array(kept, np.int64)

    def _nearest(self, vector: np.ndarray, cells: list[int]) -> int | None:
        numbers = sorted({number for cell in cells for number in self._cells.get(cell, ())})
        apart = [float(np.linalg.norm(vector - self._rows[number].astype(np.float32))) for number in numbers]
        least = min(apart, default=np.inf)
        return numbers[apart.index(least)] if least <= ROUNDING else None

    def _enter(self, row: np.ndarray, cells: list[int]) -> int:
        self._rows.append(row)
        for cell in cells:
            self._cells[cell].append(len(self._rows) - 1)
        return len(self._rows) - 1
