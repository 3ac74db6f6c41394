"""Sequences: which item stands in which row, and the vectors of rows, read through it."""

# Axes: N rows, V items, D width, M documents, R rows that are asked for.

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int32, Int64, Shaped


@runtime_checkable
class Rows(Protocol):
    """Vectors [N, D] that are read by row: an array, or a :class:`GatheredRows`."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


class GatheredRows:
    """The vectors of rows whose items lie in a table. Only the rows that are asked for are read, into a new array."""

    def __init__(self, vectors: Float[np.ndarray, "V D"], ids: Int32[np.ndarray, " N"]) -> None:
        """
        Args:
            vectors: of the items.
            ids: the item of each row.
        """
        self._vectors, self._ids = vectors, ids

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._vectors.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._ids), self._vectors.shape[1]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._vectors[self._ids[rows]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows as one array, N · D numbers in memory."""
        if copy is False:
            raise ValueError("the rows lie in a table; an array of all rows is a copy")
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Sequences:
    """The rows of a bank: documents as ranges of rows, and the item of each row.

    Attributes:
        offsets: [M + 1]; document ``m`` is rows ``offsets[m]:offsets[m + 1]``.
        ids: [N] the item of each row; None where row n holds item n, as in a bank of texts.
        times: [N] the time of each row, ascending in a document; dates and times are seconds since 1970. None without times.
    """

    offsets: Int64[np.ndarray, " offsets"]
    ids: Int32[np.ndarray, " N"] | None = None
    times: Shaped[np.ndarray, " N"] | None = None

    def items(self, rows: Int64[np.ndarray, " R"] | slice) -> Int64[np.ndarray, " R"]:
        """The item of each of some rows."""
        if self.ids is not None:
            return self.ids[rows].astype(np.int64)
        return np.arange(*rows.indices(int(self.offsets[-1]))) if isinstance(rows, slice) else rows

    def rows(self, vectors: Float[np.ndarray, "V D"]) -> Rows:
        """The vector of each row, of those of the items."""
        return vectors if self.ids is None else GatheredRows(vectors, self.ids)
