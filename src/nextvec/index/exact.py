"""Exact search: every row is read, in whatever form is fastest, and what that cannot rule out is decided exactly."""

# Axes: Q queries, N rows, D width, K neighbours, A rows that a mask knows, B rows that are added.

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from nextvec.bank import Bank, Distinct
from nextvec.errors import DataError, SettingsError
from nextvec.index import layout
from nextvec.index.inputs import Queries, as_array, checked_rows
from nextvec.index.layout import Manifest
from nextvec.index.newer import Newer
from nextvec.index.places import Places
from nextvec.kernels import scan
from nextvec.kernels.scan import RowFormat, Stored
from nextvec.progress import Progress, silent
from nextvec.ranks import Ranks
from nextvec.vectors import unit_rows


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of each query, best first and the lower row first in a tie; -1 with -inf where there are fewer than K.

    Attributes:
        decided: rows that reading could not rule out, over all queries.
    """

    rows: Int64[np.ndarray, "Q K"]
    scores: Float32[np.ndarray, "Q K"]
    decided: int = 0


class ExactIndex:
    """The distinct vectors of a bank, by inner product; rows stay where they are, memory-mapped.

    Rows that hold the same vector (:class:`~nextvec.bank.distinct.Distinct`)
    are one candidate, as in an exam, and are named by the first of them. An
    index of plain rows (the constructor) takes every row for a candidate.

    Rows are read as float32, float16 or int8 (``form``; by default as the bank
    stores them) and decided from what the bank stores, by one product
    (:func:`nextvec.kernels.scan.products`). So ids and scores are the same to
    the bit for every form, number of queries and number of threads; why int8
    misses nothing is said in :mod:`nextvec.kernels.scan`.

    Searches may run in any number of threads, beside one another and beside
    :meth:`add`: each sees all rows that were added when it began, and no part
    of others.
    """

    KIND = "exact"

    def __init__(
        self,
        rows: Float[np.ndarray, "N D"],
        form: RowFormat | None = None,
        threads: int | None = None,
        progress: Progress = silent,
    ) -> None:
        """Every row is a candidate, also one that repeats another; :meth:`build` knows a bank's distinct vectors.

        Args:
            rows: float16 or float32, finite.
            form: how rows are read; another form than their own is a copy in memory.
            threads: that read at the same time; torch's number where None.

        Raises:
            SettingsError: rows that are neither, or a form that does not exist.
        """
        self._begin(_stored(rows, form, progress), None, threads)

    @classmethod
    def build(
        cls, bank: Bank, form: RowFormat | None = None, threads: int | None = None, progress: Progress = silent
    ) -> "ExactIndex":
        """An index of a bank's distinct vectors, which can be saved."""
        index = cls.__new__(cls)
        index._begin(_stored(Places(bank.distinct).read(bank.rows), form, progress), bank, threads)
        return index

    @classmethod
    def open(cls, folder: str | Path, bank: Bank, threads: int | None = None) -> "ExactIndex":
        """The saved index of a bank, memory-mapped; of an approximate one, what it decides with.

        Raises:
            DataError: no index there, another format, made of another bank, or files that are not whole.
        """
        folder = Path(folder)
        m = Manifest.read(folder)
        m.check(folder, bank)
        places = Places(bank.distinct)
        if m.form != bank.rows.dtype and places.compact and m.distinct != len(bank.distinct):
            raise DataError(f"{folder} holds codes of all {m.rows:,} rows, not of the distinct ones; build the index again")
        rows = codes = places.read(bank.rows)
        scales, errors = (np.empty(0, np.float32) for _ in range(2))
        if m.form != rows.dtype:
            codes = layout.mapped(folder / layout.CODES, m.form, rows.shape)
        if m.form == "int8":
            scales, errors = (layout.mapped(folder / name, np.float32, (len(rows),)) for name in (layout.SCALES, layout.ERRORS))
        index = cls.__new__(cls)
        index._begin(Stored(rows, codes, scales, errors, m.longest, m.error), bank, threads)
        if m.added:
            index._append(np.array(layout.mapped(folder / layout.ADDED, bank.rows.dtype, (m.added, m.dim))))
        return index

    def _begin(self, base: Stored, bank: Bank | None, threads: int | None) -> None:
        if threads is not None and threads < 1:
            raise SettingsError(f"threads={threads}: searching takes at least one")
        self.threads = threads
        self._bank = bank
        self._places = None if bank is None else Places(bank.distinct)
        self._newer: Newer | None = None  # the rows that were added, once one more is compared with them
        self._parts: tuple[Stored, ...] = (base,)
        self._room: Stored | None = None  # as the last part, with places that are still free
        self._adding = threading.Lock()

    def __len__(self) -> int:
        """Rows that have a name: the bank's, and those that were added."""
        return self._size(self._parts)

    @property
    def dim(self) -> int:
        return self._parts[0].rows.shape[1]

    @property
    def form(self) -> RowFormat:
        """How rows are read."""
        return _form(self._parts[0].codes.dtype.name, scan.FORMATS, "codes")

    def search(
        self,
        queries_QD: Queries,
        k: int,
        excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
        allowed: Bool[np.ndarray, " A"] | None = None,
        added_only: bool = False,
    ) -> Neighbours:
        """The ``k`` candidates with the largest products, the lower row first in a tie.

        A vector is named by the first row that holds it; of allowed rows, by the first of these.

        Args:
            queries_QD: a tensor, or an array, which costs less: torch takes as long as reading a hundred rows.
            excluded: for each query, rows whose vectors are no answer, in any order: what a session has read.
            allowed: rows that may be answers, for all queries (:func:`allowed_rows`); rows beyond its end may not.
            added_only: search the added rows alone.

        Raises:
            SettingsError: k below 1.
            DataError: queries of another width or not finite, filters that do not fit.
        """
        parts = self._parts  # all that this search will see
        queries = as_array(queries_QD, self.dim)
        if k < 1:
            raise SettingsError(f"k={k}: ask for at least one neighbour")
        size, places = self._size(parts), self._places
        if excluded is not None:
            excluded = checked_rows(excluded, len(queries), size)
        if allowed is not None and (allowed.dtype != bool or allowed.ndim != 1 or len(allowed) > size):
            raise DataError(f"the mask of allowed rows is {allowed.dtype} {list(allowed.shape)}; want bool, at most [{size}]")
        mask = allowed
        if places is not None:
            mask = places.mask(allowed, size - places.rows)
            excluded = None if excluded is None else [places.of(names) for names in excluded]
        parts = parts[1:] if added_only else parts
        if not parts or not len(queries):
            none = (len(queries), k)
            return Neighbours(np.full(none, -1, np.int64), np.full(none, -np.inf, np.float32))
        found = scan.nearest(parts, queries, k, excluded, mask, self._threads)
        return Neighbours(found.rows if places is None else places.names(found.rows, allowed), found.scores, found.decided)

    def rank(
        self,
        queries_QD: Queries,
        truth_Q: Int64[np.ndarray, " Q"],
        clusters_Q: Int64[np.ndarray, " Q"],
        excluded: Sequence[Int64[np.ndarray, "..."]] | None = None,
    ) -> Ranks:
        """Where the vector that truly came is among all candidates, its score read from the same product as all others'.

        Args:
            truth_Q: for each query the row that came.
            clusters_Q: what queries depend on each other through (:class:`~nextvec.ranks.Ranks`).
            excluded: for each query, rows that are no candidates.

        Raises:
            DataError: queries of another width or not finite, rows that do not exist, or a truth that is excluded.
        """
        parts = self._parts
        queries = as_array(queries_QD, self.dim)
        size = self._size(parts)
        if truth_Q.shape != (len(queries),) or clusters_Q.shape != (len(queries),):
            raise DataError(
                f"{len(queries)} queries need as many true rows and clusters, not {len(truth_Q)} and {len(clusters_Q)}"
            )
        checked_rows([truth_Q], 1, size)
        lists = checked_rows([truth_Q[:0]] * len(queries) if excluded is None else excluded, len(queries), size)
        repeats = truth_Q[:0]
        if self._places is not None:
            truth_Q, lists = self._places.of(truth_Q), [self._places.of(names) for names in lists]
            size -= self._places.rows - len(self._places.distinct)
            repeats = self._places.repeats
        own = [_scores(parts, truth_Q[q : q + 1], queries[q]) for q in range(len(queries))]
        scores = np.concatenate([np.empty(0, np.float32), *own])
        above, tied = scan.above(parts, queries, scores, self._threads)
        tied -= 1  # the truth itself
        candidates = np.full(len(queries), size, np.int64)
        for q, names in enumerate(map(np.unique, lists)):
            if truth_Q[q] in names:
                raise DataError(f"query {q}: row {truth_Q[q]} is what came, and it is excluded; a rank needs it")
            out = _scores(parts, np.concatenate([names, repeats]), queries[q])
            above[q] -= (out > scores[q]).sum()
            tied[q] -= (out == scores[q]).sum()
            candidates[q] -= len(names)
        return Ranks(above, tied, candidates, clusters_Q)

    def scores(
        self, rows: Int64[np.ndarray, " R"], query_D: Float[Tensor, " D"] | Float[np.ndarray, " D"]
    ) -> Float32[np.ndarray, " R"]:
        """The deciding products of some rows' vectors with one query."""
        parts = self._parts
        query = as_array(query_D[None], self.dim)
        scan.check_finite(parts, query)
        names = checked_rows([rows], 1, self._size(parts))[0]
        return _scores(parts, names if self._places is None else self._places.of(names), query[0])

    def add(self, vectors: np.ndarray) -> Int64[np.ndarray, " B"]:
        """Rows that every later search sees; their numbers, which follow the last.

        They are brought to unit length as a bank's are, and stored in its type.
        A row whose vector an index of a bank holds is not added again: its
        number is that of the first row that holds it.

        Raises:
            DataError: vectors that are not usable (:mod:`nextvec.vectors`), or of another width; nothing is added then.
        """
        rows = unit_rows(vectors, self.dim, "added rows, ").astype(self._parts[0].rows.dtype)
        with self._adding:
            if self._bank is None:
                return self._append(rows)
            if self._newer is None:
                held = self._parts[1].rows if len(self._parts) > 1 else rows[:0]
                self._newer = Newer(self._bank, held)
            names, kept = self._newer.named(rows)
            if len(kept):
                self._append(rows[kept])
            return names

    def save(self, folder: str | Path) -> None:
        """Write everything but the bank's own rows; rows that were added, too.

        Raises:
            DataError: an index that was not built of a bank, or a folder that exists.
        """
        layout.publish(Path(folder), *self.contents())

    def contents(self) -> tuple[Manifest, Callable[[Path], None]]:
        """What :meth:`save` writes, as it is now: the manifest, and a function that writes the files into a folder.

        Raises:
            DataError: an index that was not built of a bank.
        """
        if self._bank is None:
            raise DataError("only an index that was built of a bank can be saved; use ExactIndex.build")
        parts, bank = self._parts, self._bank
        base = parts[0]
        added = parts[1].rows if len(parts) > 1 else base.rows[:0]

        def write(folder: Path) -> None:
            if base.codes is not base.rows:
                layout.write_array(folder / layout.CODES, base.codes)
            if len(base.scales):
                layout.write_array(folder / layout.SCALES, base.scales)
                layout.write_array(folder / layout.ERRORS, base.errors)
            layout.write_array(folder / layout.ADDED, added)

        return (
            Manifest(
                self.KIND, bank.fingerprint, bank.manifest.encoder_fingerprint, self.form,
                len(bank), self.dim, len(added), base.longest, base.error, distinct=len(bank.distinct),
            ),
            write,
        )  # fmt: skip

    @property
    def searched(self) -> int:
        """How many rows a search reads."""
        return sum(map(len, self._parts))

    @property
    def added(self) -> int:
        """How many rows were added."""
        return len(self._parts[1]) if len(self._parts) > 1 else 0

    @property
    def distinct(self) -> Distinct:
        """The distinct vectors of the bank that the index was built of.

        Raises:
            DataError: an index of plain rows.
        """
        if self._places is None:
            raise DataError("this index was made of rows without a bank; use ExactIndex.build on a bank")
        return self._places.distinct

    def named(self, rows: Int64[np.ndarray, "Q K"], allowed: Bool[np.ndarray, " A"] | None) -> Int64[np.ndarray, "Q K"]:
        """The same vectors, each by its first allowed row; -1 stays -1."""
        if self._places is None or allowed is None:
            return rows
        return self._places.names(np.where(rows < 0, -1, self._places.of(rows)), allowed)

    def _size(self, parts: Sequence[Stored]) -> int:
        places = parts[-1].first + len(parts[-1])
        return places if self._places is None else places - self._places.searched + self._places.rows

    @property
    def _threads(self) -> int:
        return self.threads or torch.get_num_threads()

    def _append(self, rows: Float[np.ndarray, "B D"]) -> Int64[np.ndarray, " B"]:
        new, size = scan.stored(rows, self.form), len(self)
        base, held = self._parts[0], self._parts[1] if len(self._parts) > 1 else None
        begin = 0 if held is None else len(held)
        room = self._room
        if room is None or len(room) < begin + len(new):
            room = self._room = _grown(held, new, begin + len(new), len(base))
        for field in ("rows", "codes", "scales", "errors"):
            # Behind the end of what searches see; that what they see grows is one assignment.
            own = getattr(new, field)
            getattr(room, field)[begin : begin + len(own)] = own
        longest, error = new.longest, new.error
        if held is not None:
            longest, error = max(longest, held.longest), max(error, held.error)
        self._parts = (base, _cut(room, begin + len(new), longest, error))
        return np.arange(size, size + len(new), dtype=np.int64)


def _stored(rows: Float[np.ndarray, "N D"], form: RowFormat | None, progress: Progress) -> Stored:
    own = _form(rows.dtype.name, ("float16", "float32"), "rows")
    form = own if form is None else _form(form, scan.FORMATS, "form")
    # Rows that are in order stay mapped; others are copied.
    ordered = rows if rows.flags.c_contiguous else np.ascontiguousarray(rows)
    return scan.stored(ordered, form, 0, progress)


def _scores(
    parts: Sequence[Stored], rows: Int64[np.ndarray, " R"], query: Float32[np.ndarray, " D"]
) -> Float32[np.ndarray, " R"]:
    out = np.empty(len(rows), np.float32)
    for part in parts:
        own = (rows >= part.first) & (rows < part.first + len(part))
        out[own] = scan.products(part.rows, rows[own] - part.first, np.ascontiguousarray(query))
    return out


def _grown(held: Stored | None, like: Stored, least: int, first: int) -> Stored:
    """Room for twice as many as are needed, so that each row is moved about once however many come."""
    room = 2 * least

    def larger(old: np.ndarray | None, new: np.ndarray) -> np.ndarray:
        grown = scan.aligned((room if len(new) else 0, *new.shape[1:]), new.dtype)
        if old is not None:
            grown[: len(old)] = old
        return grown

    names = ("rows", "codes", "scales", "errors")
    rows, codes, scales, errors = (larger(None if held is None else getattr(held, name), getattr(like, name)) for name in names)
    return Stored(rows, rows if like.codes is like.rows else codes, scales, errors, 0.0, 0.0, first)


def _cut(room: Stored, count: int, longest: float, error: float) -> Stored:
    rows = room.rows[:count]
    codes = rows if room.codes is room.rows else room.codes[:count]
    return replace(room, rows=rows, codes=codes, scales=room.scales[:count], errors=room.errors[:count],
                   longest=longest, error=error)  # fmt: skip


def _form(name: str, forms: Sequence[str], what: str) -> RowFormat:
    for form in ("float32", "float16", "int8"):
        if name == form and name in forms:
            return form
    raise SettingsError(f"{what} {name!r}: choose {', '.join(forms)}")
