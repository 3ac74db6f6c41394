"""Duplicates in a bank: exact and near-duplicate rows, near-duplicate documents."""

# Axes: N rows, D width, U distinct rows.

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int64

from nextvec.bank import layout
from nextvec.bank.bank import Bank
from nextvec.bank.grouping import document_groups
from nextvec.settings import fits

NEAR = 0.995  # cosine from which two rows are near-duplicates
COUNTS = ("rows", "exact_duplicates", "near_duplicates")  # the first fields of Census
TABLES, FULL_BUCKET, BLOCK = 16, 64, 65_536


@dataclass(frozen=True)
class Census:
    """What :func:`census` counts.

    Attributes:
        rows: all of them; in a bank of items, the items.
        exact_duplicates: rows that hold the same vector as an earlier one (:class:`~nextvec.bank.distinct.Distinct`).
        near_duplicates: further rows within cosine ``threshold`` of an earlier one.
        document_groups: documents, by index, that are near-duplicates
            (:func:`~nextvec.bank.grouping.document_groups`), directly or through others; kept in one part of a split.
        threshold: the cosine of a near duplicate.
    """

    rows: int
    exact_duplicates: int
    near_duplicates: int
    document_groups: tuple[tuple[int, ...], ...]
    threshold: float = NEAR


def census(bank: Bank) -> Census:
    """Count the duplicates of a bank. A bank on disk keeps the result beside its rows, if its folder can be written.

    If the kept result is damaged or belongs to other content, the duplicates are counted again.

    Near duplicates are found by locality-sensitive hashing with random
    hyperplanes (Charikar 2002). Each candidate pair is measured, so every pair
    found is a near-duplicate. At the threshold, about one pair in ten thousand is
    missed if vectors spread in all directions, and a few in a hundred if their mean
    cosine is 0.9.
    """
    kept = bank.path / layout.CENSUS if bank.path is not None else None
    found = _read(kept, bank) if kept is not None else None
    if found is not None:
        return found
    counted = _count(bank)
    if kept is not None:
        layout.keep(kept, json.dumps({"bank": bank.fingerprint, **asdict(counted)}) + "\n")
    return counted


def _read(kept: Path, bank: Bank) -> Census | None:
    """The result that was kept for this content; None if it is missing or damaged."""
    try:
        values: Any = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    values = cast("dict[str, Any]", values)
    if (values.get("bank"), values.get("threshold")) != (bank.fingerprint, NEAR):
        return None
    counts, groups = [values.get(name) for name in COUNTS], values.get("document_groups")
    if not (fits(list[int], counts) and fits(list[list[int]], groups) and counts[0] == len(bank.table)):
        return None
    if not all(0 <= m < bank.num_documents for group in groups for m in group):
        return None
    rows, exact, near = counts
    return Census(rows, exact, near, tuple(tuple(group) for group in groups))


def _count(bank: Bank) -> Census:
    vectors, distinct = bank.table.vectors, bank.distinct.firsts
    pairs = _near_pairs(vectors, distinct)
    near = len(np.unique(pairs.max(axis=1))) if len(pairs) else 0
    return Census(len(vectors), len(vectors) - len(distinct), near, document_groups(bank, pairs))


def _near_pairs(rows: Float[np.ndarray, "N D"], distinct: Int64[np.ndarray, " U"]) -> Int64[np.ndarray, "P 2"]:
    """Pairs of distinct rows with cosine at least ``NEAR``."""
    bits = max(8, int(np.ceil(np.log2(max(len(distinct), 2)))) + 2)
    planes = np.random.default_rng(7).standard_normal((rows.shape[1], TABLES * bits)).astype(np.float32)
    # Centred, because planes through the origin hardly separate vectors that all point in one direction.
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
