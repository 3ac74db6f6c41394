"""How much of a bank is said twice: exact and near-duplicate rows, near-duplicate documents."""

# Axes: N rows, D width, U distinct rows.

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int64

from nextvec.bank import layout
from nextvec.bank.bank import Bank

NEAR = 0.995  # cosine from which two rows say the same
SHARE = 0.5  # share of the shorter document from which two documents are near-duplicates
TABLES, FULL_BUCKET, COMMON, BLOCK = 16, 64, 256, 65_536


@dataclass(frozen=True)
class Census:
    """What :func:`census` counts.

    Attributes:
        rows: all of them.
        exact_duplicates: rows that hold the same vector as an earlier one (:class:`~nextvec.bank.distinct.Distinct`).
        near_duplicates: further rows within cosine ``threshold`` of an earlier one.
        document_groups: documents, by index, that share at least half of the
            shorter one's rows, directly or through others; kept in one split.
        threshold: the cosine of a near duplicate.
    """

    rows: int
    exact_duplicates: int
    near_duplicates: int
    document_groups: tuple[tuple[int, ...], ...]
    threshold: float = NEAR


def census(bank: Bank) -> Census:
    """Count duplicates, once: a bank on disk keeps the answer beside its rows.

    Near duplicates are found by locality-sensitive hashing with random
    hyperplanes (Charikar 2002) and then measured: no false ones; at the
    threshold about one in ten thousand is missed where vectors spread in all
    directions, a few in a hundred where their mean cosine is as high as 0.9.
    """
    kept = bank.path / layout.CENSUS if bank.path is not None else None
    if kept is not None and kept.exists():
        values = layout.read_json(kept)
        values["document_groups"] = tuple(tuple(group) for group in values["document_groups"])
        return Census(**values)
    counted = _count(bank)
    if kept is not None:
        layout.write_atomically(kept, json.dumps(asdict(counted)) + "\n")
    return counted


def _count(bank: Bank) -> Census:
    classes, distinct = bank.distinct.classes, bank.distinct.firsts
    pairs = _near_pairs(bank.rows, distinct)
    near = len(np.unique(pairs.max(axis=1))) if len(pairs) else 0
    shared = _shared_rows(bank, classes, pairs)
    groups = _grouped(bank, shared)
    return Census(len(bank), len(bank) - len(distinct), near, groups)


def _near_pairs(rows: Float[np.ndarray, "N D"], distinct: Int64[np.ndarray, " U"]) -> Int64[np.ndarray, "P 2"]:
    """Pairs of distinct rows with cosine at least ``NEAR``."""
    bits = max(8, int(np.ceil(np.log2(max(len(distinct), 2)))) + 2)
    planes = np.random.default_rng(7).standard_normal((rows.shape[1], TABLES * bits)).astype(np.float32)
    # Centred, because planes through the origin hardly separate vectors that all point one way.
    centre = rows[distinct[:: max(1, len(distinct) // BLOCK)]].astype(np.float32).mean(0)
    codes = np.empty((len(distinct), TABLES), dtype=np.int64)
    weights = 1 << np.arange(bits, dtype=np.int64)
    for start in range(0, len(distinct), BLOCK):
        block = rows[distinct[start : start + BLOCK]].astype(np.float32) - centre
        signs = (block @ planes > 0).reshape(len(block), TABLES, bits)
        codes[start : start + BLOCK] = signs @ weights
    found: list[np.ndarray] = []
    for table in range(TABLES):
        for candidates in _bucket_pairs(codes[:, table]):
            pairs = distinct[candidates]
            cosines = np.einsum("pd,pd->p", rows[pairs[:, 0]].astype(np.float32), rows[pairs[:, 1]].astype(np.float32))
            found.append(pairs[cosines >= NEAR])
    return np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 2), np.int64)


def _bucket_pairs(codes: Int64[np.ndarray, " U"]) -> Iterator[Int64[np.ndarray, "P 2"]]:
    """Candidate pairs within one table: neighbours at up to ``FULL_BUCKET`` places in bucket order, in bounded blocks."""
    order = np.argsort(codes, kind="stable")
    for step in range(1, FULL_BUCKET + 1):
        same = np.flatnonzero(codes[order[:-step]] == codes[order[step:]]) if step < len(order) else np.empty(0, int)
        if not len(same):
            return
        for start in range(0, len(same), BLOCK):
            chosen = same[start : start + BLOCK]
            pairs = np.stack([order[chosen], order[chosen + step]], axis=1)
            yield np.sort(pairs, axis=1)


def _shared_rows(bank: Bank, classes: np.ndarray, pairs: np.ndarray) -> Counter[tuple[int, int]]:
    """For each pair of documents, how many rows of the first have a twin in the second."""
    document = bank.document_of(np.arange(len(bank), dtype=np.int64))
    held, counts = np.unique(np.stack([classes, document], axis=1), axis=0, return_counts=True)
    owners: dict[int, dict[int, int]] = {}
    for (row, m), count in zip(held.tolist(), counts.tolist(), strict=True):
        owners.setdefault(row, {})[m] = count
    twins: dict[int, set[int]] = {row: {row} for row, docs in owners.items() if len(docs) > 1}
    for a, b in pairs.tolist():
        twins.setdefault(a, {a}).add(b)
        twins.setdefault(b, {b}).add(a)
    shared: Counter[tuple[int, int]] = Counter()
    for row, alike in twins.items():
        others = {m for twin in alike for m in owners[twin]}
        if len(others) <= COMMON:  # what everybody says tells no two documents apart
            shared.update({(a, b): count for a, count in owners[row].items() for b in others if a != b})
    for group in _copies(bank, classes):
        shared.update({(a, b): int(bank.lengths[a]) for a, b in pairwise(group)})
    return shared


def _copies(bank: Bank, classes: np.ndarray) -> list[list[int]]:
    """Documents with the very same rows, however common each row is."""
    same: dict[bytes, list[int]] = {}
    for m in range(bank.num_documents):
        same.setdefault(classes[bank.offsets[m] : bank.offsets[m + 1]].tobytes(), []).append(m)
    return [group for group in same.values() if len(group) > 1]


def _grouped(bank: Bank, shared: Counter[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    parent = list(range(bank.num_documents))

    def root(m: int) -> int:
        while parent[m] != m:
            parent[m] = parent[parent[m]]
            m = parent[m]
        return m

    lengths = bank.lengths
    for (a, b), rows in shared.items():
        if lengths[a] <= lengths[b] and rows >= SHARE * lengths[a]:
            parent[max(root(a), root(b))] = min(root(a), root(b))
    members: dict[int, list[int]] = {}
    for m in range(bank.num_documents):
        members.setdefault(root(m), []).append(m)
    return tuple(tuple(group) for group in members.values() if len(group) > 1)
