"""Exact search: every row is read in a compact format, and rows that this cannot rule out are decided exactly."""

# Axes: Q queries, N rows, D width, E width of mapped rows, U distinct vectors, K neighbours, R rows,
# A rows that a mask knows, B rows that are added.

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from nextvec.bank import Bank, Distinct
from nextvec.errors import DataError, SettingsError
from nextvec.index import layout
from nextvec.index.added import grown
from nextvec.index.inputs import as_array, check_k, checked_rows
from nextvec.index.layout import IndexManifest
from nextvec.index.mapping import mapped, mapped_bank
from nextvec.index.newer import Newer
from nextvec.index.places import Places
from nextvec.index.protocol import Neighbours, Queries, RowMap
from nextvec.kernels.scan import nearest
from nextvec.kernels.scan_best import Best
from nextvec.kernels.scan_pooled import PooledQuery, nearest_pooled
from nextvec.kernels.scan_rows import FORMATS, RowFormat, Stored, check_finite, products, stored
from nextvec.progress import Progress, silent
from nextvec.vectors import unit_rows

Excluded = Sequence[Int64[np.ndarray, "..."]]  # for each query
Mask = Bool[np.ndarray, " A"]


class ExactIndex:
    """Exact search over the distinct vectors of a bank, by inner product; the bank's rows stay memory-mapped.

    Rows that hold the same vector (:class:`~nextvec.bank.distinct.Distinct`)
    are one candidate, as in an exam, named by the first of them. An index of
    plain rows, made by the constructor, treats every row as a candidate.

    Rows are read as float32, float16 or int8 (``form``; by default as the bank
    stores them). The bank's own rows decide, by one product
    (:func:`nextvec.kernels.scan_rows.products`). So row numbers and scores are
    the same bits for every format, number of queries and number of threads.
    :mod:`nextvec.kernels.scan` shows why int8 misses no row.

    With a map of rows (:class:`~nextvec.index.protocol.RowMap`), the mapped
    float32 rows take the place of the bank's: they are read and they decide.
    They are a copy in memory of the distinct rows. A saved index does not hold
    them: they are mapped again when it is opened, because another machine may
    round a product of matrices otherwise.

    Searches may run in any number of threads, also during :meth:`add`. A search
    sees all rows that were added before it began, and no later ones in part.
    """

    KIND: Literal["exact"] = "exact"
    exact, filters, grows = True, True, True
    measured: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        rows: Float[np.ndarray, "N D"],
        form: RowFormat | None = None,
        threads: int | None = None,
        progress: Progress = silent,
    ) -> None:
        """An index of plain rows, each a candidate; :meth:`build` indexes the distinct vectors of a bank.

        Args:
            rows: float16 or float32, finite.
            form: format in which rows are read; a copy in memory if it is not their own.
            threads: number that read at the same time; torch's number if None.

        Raises:
            SettingsError: rows of another dtype, or a format that does not exist.
        """
        self._begin(_stored(rows, form, progress), None, threads)

    @classmethod
    def build(
        cls,
        bank: Bank,
        form: RowFormat | None = None,
        threads: int | None = None,
        progress: Progress = silent,
        mapping: RowMap | None = None,
    ) -> "ExactIndex":
        """The index of a bank's distinct vectors.

        Args:
            form: format in which rows are read; the bank's, or float32 with a map, if None.
            threads: number that read at the same time; torch's number if None.
            mapping: of the rows; queries are compared with the mapped rows.

        Raises:
            SettingsError: a format that does not exist.
            DataError: a mapped row is not finite.
        """
        index = cls.__new__(cls)
        rows = Places(bank.distinct).read(bank.table.vectors) if mapping is None else mapped_bank(bank, mapping, progress)
        index._begin(_stored(rows, form, progress), bank, threads, mapping)
        return index

    @classmethod
    def open(cls, folder: str | Path, bank: Bank, threads: int | None = None, mapping: RowMap | None = None) -> "ExactIndex":
        """The saved index of a bank, memory-mapped; of an approximate index, its exact part.

        Args:
            mapping: the map of rows that the index was built with; the mapped rows and their codes are computed again.

        Raises:
            DataError: no index there, another format, an index of another bank or map, or damaged files.
        """
        folder = Path(folder)
        m = IndexManifest.read(folder)
        m.check(folder, bank, "" if mapping is None else mapping.digest)
        index = cls.__new__(cls) if mapping is None else cls.build(bank, m.form, threads, mapping=mapping)
        if mapping is None:
            index._begin(layout.opened(folder, m, bank), bank, threads)
        if m.added:
            index._append(np.array(layout.read_array(folder / layout.ADDED, np.dtype(bank.manifest.dtype), (m.added, m.dim))))
        return index

    def _begin(self, base: Stored, bank: Bank | None, threads: int | None, mapping: RowMap | None = None) -> None:
        if threads is not None and threads < 1:
            raise SettingsError(f"threads={threads}: a search needs at least one")
        self.threads = threads
        self._bank = bank
        self._mapping = mapping
        self._places = None if bank is None else Places(bank.distinct, copied=mapping is not None)
        self._newer: Newer | None = None  # built when the first row is added
        self._parts: tuple[Stored, ...] = (base,)
        self._originals: list[np.ndarray] = []  # with a map: the added rows before it
        self._room: Stored | None = None  # the memory of the added rows, with free places at its end
        self._adding = threading.Lock()

    def __len__(self) -> int:
        """Number of rows: the bank's, and the added ones."""
        return self._size(self._parts)

    @property
    def kind(self) -> str:
        return self.KIND

    @property
    def dim(self) -> int:
        return self._parts[0].rows.shape[1]

    @property
    def map_digest(self) -> str:
        return "" if self._mapping is None else self._mapping.digest

    @property
    def form(self) -> RowFormat:
        """The format in which rows are read."""
        return _form(self._parts[0].codes.dtype.name, FORMATS, "codes")

    def search(
        self,
        queries_QD: Queries,
        k: int,
        excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
        allowed: Bool[np.ndarray, " A"] | None = None,
        added_only: bool = False,
    ) -> Neighbours:
        """As :meth:`Index.search`; ``added_only`` searches the added rows alone.

        Queries as an array cost less than as a tensor: torch takes as long as reading a hundred rows.
        """
        queries = as_array(queries_QD, self.dim)

        def find(parts: Sequence[Stored], barred: Excluded | None, mask: Mask | None) -> Best:
            return nearest(parts, queries, k, barred, mask, self._threads)

        return self._search(find, len(queries), k, excluded, allowed, added_only)

    def search_pooled(
        self,
        predictions: Sequence[PooledQuery],
        k: int,
        excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
        allowed: Bool[np.ndarray, " A"] | None = None,
    ) -> Neighbours:
        """As :meth:`Index.search_pooled`."""

        def find(parts: Sequence[Stored], barred: Excluded | None, mask: Mask | None) -> Best:
            return nearest_pooled(parts, predictions, k, barred, mask, self._threads)

        return self._search(find, len(predictions), k, excluded, allowed)

    def _search(
        self,
        find: Callable[[Sequence[Stored], Excluded | None, Mask | None], Best],
        count: int,
        k: int,
        excluded: Excluded | None,
        allowed: Mask | None,
        added_only: bool = False,
    ) -> Neighbours:
        """The answer of ``find``, which takes places and returns places, by row number.

        Args:
            count: number of queries or predictions.
        """
        parts = self._parts  # read once, because another thread may add rows
        check_k(k)
        size, places = self._size(parts), self._places
        if excluded is not None:
            excluded = checked_rows(excluded, count, size)
        if allowed is not None and (allowed.dtype != bool or allowed.ndim != 1 or len(allowed) > size):
            raise DataError(f"the mask of allowed rows is {allowed.dtype} {list(allowed.shape)}; want bool, at most [{size}]")
        mask = allowed
        if places is not None:
            mask = places.mask(allowed, size - places.rows)
            excluded = None if excluded is None else [places.of(names) for names in excluded]
        parts = parts[1:] if added_only else parts
        if not parts or not count:
            none = (count, k)
            return Neighbours(np.full(none, -1, np.int64), np.full(none, -np.inf, np.float32))
        found = find(parts, excluded, mask)
        return Neighbours(found.rows if places is None else places.names(found.rows, allowed), found.scores, found.decided)

    def scores(
        self, rows: Int64[np.ndarray, " R"], query_D: Float[Tensor, " D"] | Float[np.ndarray, " D"]
    ) -> Float32[np.ndarray, " R"]:
        """As :meth:`Index.scores`."""
        parts = self._parts
        query = as_array(query_D[None], self.dim)
        check_finite(parts, query)
        names = checked_rows([rows], 1, self._size(parts))[0]
        return _scores(parts, names if self._places is None else self._places.of(names), query[0])

    def vectors(self, rows: Int64[np.ndarray, " R"]) -> Float32[np.ndarray, "R E"]:
        """As :meth:`Index.vectors`."""
        parts = self._parts
        names = checked_rows([rows], 1, self._size(parts))[0]
        at = names if self._places is None else self._places.of(names)
        out = np.empty((len(at), self.dim), np.float32)
        for part in parts:
            own = part.has(at)
            out[own] = part.rows[at[own] - part.first]
        return out

    def add(self, vectors: np.ndarray) -> Int64[np.ndarray, " B"]:
        """As :meth:`Index.add`. Rows are scaled to unit length and stored in the bank's dtype, as a bank's rows are.

        An index of plain rows adds every row. Vectors are compared with those that the index holds before the map of rows.
        """
        like = self._parts[0].rows if self._bank is None else self._bank.table.vectors
        rows = unit_rows(vectors, like.shape[1], "added rows, ").astype(like.dtype)
        with self._adding:
            if self._bank is None:
                return self._append(rows)
            if self._newer is None:
                self._newer = Newer(self._bank, self._added_rows(self._parts, rows[:0]))
            names, kept = self._newer.named(rows)
            if len(kept):
                self._append(rows[kept])
            return names

    def save(self, folder: str | Path) -> None:
        """As :meth:`Index.save`."""
        layout.publish(Path(folder), *self.contents())

    def contents(self) -> tuple[IndexManifest, Callable[[Path], None]]:
        """The manifest of the index as it is now, and a function that writes its files into a folder.

        Raises:
            DataError: the index was not built from a bank.
        """
        if self._bank is None:
            raise DataError("only an index that was built from a bank can be saved; use ExactIndex.build")
        parts, bank = self._parts, self._bank
        base = parts[0]
        added, plain = self._added_rows(parts, bank.table.vectors[:0]), self._mapping is None

        def write(folder: Path) -> None:
            if plain and base.codes is not base.rows:
                layout.write_array(folder / layout.CODES, base.codes)
            if plain and len(base.scales):
                layout.write_array(folder / layout.SCALES, base.scales)
                layout.write_array(folder / layout.ERRORS, base.errors)
            layout.write_array(folder / layout.ADDED, added)

        return (
            IndexManifest(
                self.KIND, bank.fingerprint, bank.manifest.encoder_fingerprint, self.form,
                len(bank.table), bank.dim, len(added), base.longest, base.error, distinct=len(bank.distinct),
                mapping=self.map_digest,
            ),
            write,
        )  # fmt: skip

    @property
    def longest(self) -> float:
        """An upper bound of the length of every row."""
        return max(part.longest for part in self._parts)

    @property
    def searched(self) -> int:
        """Number of rows that a search reads."""
        return sum(map(len, self._parts))

    @property
    def added(self) -> int:
        """Number of rows that were added."""
        return len(self._parts[1]) if len(self._parts) > 1 else 0

    @property
    def distinct(self) -> Distinct:
        """The distinct vectors of the bank.

        Raises:
            DataError: an index of plain rows.
        """
        if self._places is None:
            raise DataError("this index was made from plain rows; use ExactIndex.build with a bank")
        return self._places.distinct

    def first_rows(self, numbers: slice) -> Float32[np.ndarray, "U D"]:
        """The vectors with some numbers of :attr:`distinct`, as queries are compared with them.

        Raises:
            DataError: an index of plain rows.
        """
        rows, places = self._parts[0].rows, self._places
        return rows[numbers if places is not None and places.compact else self.distinct.firsts[numbers]].astype(np.float32)

    def named(self, rows: Int64[np.ndarray, "Q K"], allowed: Bool[np.ndarray, " A"] | None) -> Int64[np.ndarray, "Q K"]:
        """The first allowed row with the vector of each row; -1 stays -1."""
        if self._places is None or allowed is None:
            return rows
        return self._places.names(np.where(rows < 0, -1, self._places.of(rows)), allowed)

    def _size(self, parts: Sequence[Stored]) -> int:
        places = parts[-1].first + len(parts[-1])
        return places if self._places is None else places - self._places.searched + self._places.rows

    @property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    def _added_rows(self, parts: Sequence[Stored], none: Float[np.ndarray, "0 D"]) -> Float[np.ndarray, "B D"]:
        """The added rows before the map of rows."""
        if len(parts) == 1:
            return none
        return parts[1].rows if self._mapping is None else np.concatenate(self._originals)[: len(parts[1])]

    def _append(self, rows: Float[np.ndarray, "B D"]) -> Int64[np.ndarray, " B"]:
        if self._mapping is not None:
            self._originals.append(rows)
            rows = mapped(rows, self._mapping)
        new, size = stored(rows, self.form), len(self)
        base, held = self._parts[0], self._parts[1] if len(self._parts) > 1 else None
        begin = 0 if held is None else len(held)
        room = self._room
        if room is None or len(room) < begin + len(new):
            room = self._room = grown(held, new, begin + len(new), len(base))
        for field in ("rows", "codes", "scales", "errors"):
            # Written behind the end that searches see; one assignment below makes it visible.
            own = getattr(new, field)
            getattr(room, field)[begin : begin + len(own)] = own
        longest, error = new.longest, new.error
        if held is not None:
            longest, error = max(longest, held.longest), max(error, held.error)
        self._parts = (base, replace(room.between(0, begin + len(new)), longest=longest, error=error))
        return np.arange(size, size + len(new), dtype=np.int64)


def _stored(rows: Float[np.ndarray, "N D"], form: RowFormat | None, progress: Progress) -> Stored:
    own = _form(rows.dtype.name, ("float16", "float32"), "rows")
    form = own if form is None else _form(form, FORMATS, "form")
    # Contiguous rows stay mapped; others are copied.
    ordered = rows if rows.flags.c_contiguous else np.ascontiguousarray(rows)
    return stored(ordered, form, 0, progress)


def _scores(
    parts: Sequence[Stored], rows: Int64[np.ndarray, " R"], query: Float32[np.ndarray, " D"]
) -> Float32[np.ndarray, " R"]:
    out = np.empty(len(rows), np.float32)
    for part in parts:
        own = part.has(rows)
        out[own] = products(part.rows, rows[own] - part.first, np.ascontiguousarray(query))
    return out


def _form(name: str, forms: Sequence[str], what: str) -> RowFormat:
    for form in ("float32", "float16", "int8"):
        if name == form and name in forms:
            return form
    raise SettingsError(f"{what} {name!r}: choose {', '.join(forms)}")
