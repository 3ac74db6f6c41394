"""Near-duplicate documents, found by the rows that few documents hold."""

# Axes: U distinct rows, P pairs of near-duplicate rows, H holdings (a document and a distinct row it holds), M documents.

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64

from nextvec.bank.bank import Bank
from nextvec.bank.hashing import GOLDEN, mix64

SHARE = 0.5  # share of the shorter document's rare rows from which two documents are near-duplicates
# A row is rare when at most this many documents hold it: six, or one document in fifty, but at most 32.
# Measured on MovieLens and Amazon sessions: with more, sessions of 30 to 6,000 users chain into one group.
FEWEST, ONE_IN, MOST = 6, 50, 32
ENOUGH = 0.25  # share of a document's rows that must be rare for the document to be judged by them
ALIKE = 0.8  # share of all their distinct rows from which two documents are near-duplicates though the rows are common
BANDS, HASHES = 8, 3  # documents that share ALIKE have an equal key in some band in 997 of 1,000 cases
BLOCK = 1 << 22  # pairs of documents counted at once


@dataclass(frozen=True)
class _Holdings:
    """Which document holds which distinct row, and which other documents hold the row or a near-duplicate of it.

    Attributes:
        documents, rows: [H] a document and a distinct row of it, ordered by document, each once.
        starts, counts: [U] for each distinct row, the range in ``holders`` of the documents that hold it or a near-duplicate.
            For a row that is not rare, ``counts`` may be too high.
        holders: documents, ordered by row.
        names: [U] for each distinct row, the first of it and its near-duplicates.
    """

    documents: Int64[np.ndarray, " H"]
    rows: Int64[np.ndarray, " H"]
    starts: Int64[np.ndarray, " U"]
    counts: Int64[np.ndarray, " U"]
    holders: Int64[np.ndarray, " _"]
    names: Int64[np.ndarray, " U"]

    def evidence(self, rows: Int64[np.ndarray, " R"], size: Int64[np.ndarray, " R"] | int) -> Float64[np.ndarray, " R"]:
        """-ln of the probability that a document of ``size`` distinct rows, drawn by chance, holds each row."""
        return -np.log(-np.expm1(-self.counts[rows] * size / len(self.rows)))


def document_groups(bank: Bank, pairs: Int64[np.ndarray, "P 2"]) -> tuple[tuple[int, ...], ...]:
    """Documents, by index, that are near-duplicates of each other, directly or through others; groups of two or more.

    A row is rare when few documents hold it or a near-duplicate of it (:func:`_few`). Two documents are near-duplicates when

    - the longer one holds at least ``SHARE`` of the rare rows of the shorter one, or near-duplicates of them, and at least
      ``ENOUGH`` of the shorter one's distinct rows are rare; or
    - they share at least ``ALIKE`` of their distinct rows, rare or not; or
    - they hold the very same rows in the same order.

    The first two conditions have a minimum of evidence. Assume that documents draw their rows at random, in proportion to
    how often each row occurs. Then such an overlap must be expected less than once among all pairs of documents.
    Therefore a session of two items is not a near-duplicate of every longer session that holds both.

    Args:
        pairs: near-duplicate pairs of distinct vectors, each named as in ``bank.classes``.

    The cost grows linearly with the rows: a rare row has at most ``MOST`` holders, and documents that share most of their
    rows are found by min-hashing (Broder 1997).
    """
    held = _holdings(bank, pairs)
    found = [*_overlapping(held, bank.num_documents), *_alike(held, bank.num_documents), *_copies(bank)]
    return _connected(bank.num_documents, found)


def _few(documents: int) -> int:
    """How many of a bank's documents may hold a rare row."""
    return max(FEWEST, min(MOST, documents // ONE_IN))


def _holdings(bank: Bank, pairs: Int64[np.ndarray, "P 2"]) -> _Holdings:
    documents = bank.num_documents
    distinct, numbers = np.unique(bank.classes, return_inverse=True)
    pairs = pairs[np.isin(pairs, distinct).all(axis=1)]  # items that no document holds connect none
    document = bank.document_of(np.arange(len(bank), dtype=np.int64))
    own = np.unique(numbers * documents + document)  # a distinct row and a document that holds it
    few = _few(documents)
    counts = np.bincount(own // documents, minlength=len(distinct))
    starts = np.cumsum(counts) - counts
    near = np.searchsorted(distinct, pairs)
    near = np.concatenate([near, near[:, ::-1]])
    common = (counts[near] > few).any(axis=1)  # neither row is rare, so the documents that hold the other row are only counted
    of, place = _ranges(starts[near[~common, 1]], counts[near[~common, 1]])
    widened = np.unique(np.concatenate([own, near[~common][of, 0] * documents + own[place] % documents]))
    holders = np.bincount(widened // documents, minlength=len(distinct))
    starts = np.cumsum(holders) - holders
    np.add.at(holders, near[common, 0], counts[near[common, 1]])
    names = np.arange(len(distinct))
    np.minimum.at(names, near[:, 0], near[:, 1])
    by_document = np.argsort(own % documents, kind="stable")
    own = own[by_document]
    return _Holdings(own % documents, own // documents, starts, holders, widened % documents, names)


def _overlapping(held: _Holdings, documents: int) -> Iterator[tuple[int, int]]:
    """Pairs of documents that :func:`document_groups` calls near-duplicates by their rare rows."""
    rare = held.counts[held.rows] <= _few(documents)
    sizes = np.bincount(held.documents, minlength=documents)
    rares = np.bincount(held.documents[rare], minlength=documents)
    judged = rare & (held.counts[held.rows] > 1) & (rares >= ENOUGH * sizes)[held.documents]
    owner, row = held.documents[judged], held.rows[judged]
    for part in _blocks(owner, held.counts[row]):
        of, place = _ranges(held.starts[row[part]], held.counts[row[part]])
        a, b = owner[part][of], held.holders[place]
        shorter = (a != b) & ((sizes[a] < sizes[b]) | ((sizes[a] == sizes[b]) & (a < b)))
        keys, which = np.unique(a[shorter] * documents + b[shorter], return_inverse=True)
        shared = np.bincount(which)
        evidence = np.bincount(which, held.evidence(row[part][of][shorter], sizes[b[shorter]]))
        near = (shared >= SHARE * rares[keys // documents]) & (evidence > 2 * np.log(documents))
        yield from zip((keys[near] // documents).tolist(), (keys[near] % documents).tolist(), strict=True)


def _alike(held: _Holdings, documents: int) -> Iterator[tuple[int, int]]:
    """Pairs of documents that share ``ALIKE`` of their rows; many such are paired in a chain."""
    names = held.names[held.rows]
    first = np.searchsorted(held.documents, np.arange(documents + 1))
    met: list[np.ndarray] = []
    for band in range(BANDS):
        keys = np.zeros(documents, dtype=np.uint64)
        for number in range(HASHES):
            seed = mix64(np.array([band * HASHES + number + 1], dtype=np.uint64))
            least = np.minimum.reduceat(mix64(names.astype(np.uint64) * GOLDEN + seed), first[:-1])
            keys = mix64(keys * GOLDEN + least)
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order[:-1]] == keys[order[1:]])
        met.append(np.stack([order[same], order[same + 1]], axis=1))
    for a, b in np.unique(np.concatenate(met), axis=0).tolist():
        rows, others = (held.rows[first[m] : first[m + 1]] for m in (a, b))
        shared = np.isin(held.names[rows], held.names[others])
        union = len(rows) + len(others) - int(shared.sum())
        evidence = held.evidence(rows[shared], max(len(rows), len(others))).sum()
        if shared.sum() >= ALIKE * union and evidence > 2 * np.log(documents):
            yield a, b


def _ranges(starts: Int64[np.ndarray, " R"], counts: Int64[np.ndarray, " R"]) -> tuple[np.ndarray, np.ndarray]:
    """All places of some ranges, end to end, and for each place the number of its range."""
    of = np.repeat(np.arange(len(counts)), counts)
    return of, np.arange(len(of)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


def _blocks(owner: Int64[np.ndarray, " H"], costs: Int64[np.ndarray, " H"]) -> Iterator[slice]:
    """Ranges of whole owners whose costs add up to about ``BLOCK``."""
    edges = np.flatnonzero(np.diff(owner, prepend=-1, append=-1))
    if len(edges) < 2:
        return
    before = np.concatenate([[0], np.cumsum(costs)])[edges]
    first = 0
    while first < len(edges) - 1:
        last = max(first + 1, int(np.searchsorted(before, before[first] + BLOCK, side="right")) - 1)
        yield slice(int(edges[first]), int(edges[last]))
        first = last


def _copies(bank: Bank) -> Iterator[tuple[int, int]]:
    """Documents with the very same rows, however common each row is."""
    same: dict[bytes, list[int]] = {}
    for m in range(bank.num_documents):
        same.setdefault(bank.classes[bank.offsets[m] : bank.offsets[m + 1]].tobytes(), []).append(m)
    for group in same.values():
        yield from pairwise(group)


def _connected(documents: int, pairs: list[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Groups of two or more that pairs connect, each ascending, ordered by their first."""
    parent = list(range(documents))

    def root(m: int) -> int:
        while parent[m] != m:
            parent[m] = parent[parent[m]]
            m = parent[m]
        return m

    for a, b in pairs:
        parent[max(root(a), root(b))] = min(root(a), root(b))
    members: dict[int, list[int]] = {}
    for m in range(documents):
        members.setdefault(root(m), []).append(m)
    return tuple(tuple(group) for group in members.values() if len(group) > 1)
