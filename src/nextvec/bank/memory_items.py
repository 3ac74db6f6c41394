"""Banks of items in memory, from arrays."""

# Axes: V items, D width, N rows, M documents.

import hashlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from nextvec.bank.documents import Dtype, stored_rows
from nextvec.bank.layout import WITH_ITEMS, Manifest
from nextvec.bank.objects import array_of, ids_of
from nextvec.bank.sequences import Sequences
from nextvec.bank.vector_table import VectorTable
from nextvec.errors import DataError


class ItemArrays(NamedTuple):
    """Vectors [V, D] of any length, the item of each row, the documents as offsets, and the names of items and documents."""

    vectors: np.ndarray
    ids: Int32[np.ndarray, " N"]
    offsets: Int64[np.ndarray, " offsets"]
    names: list[str]
    documents: list[str]


def item_arrays(vectors: Any, ids: Any, lengths: Any, names: Any, documents: Any) -> ItemArrays:
    """The arguments of :meth:`~nextvec.bank.Bank.from_items`, checked.

    Raises:
        DataError: shapes or numbers that do not fit.
    """
    held = array_of(vectors, "the vectors")
    items, counts = array_of(ids, "ids"), array_of(lengths, "lengths")
    for array, what in ((items, "ids"), (counts, "lengths")):
        if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
            raise DataError(f"{what} must be a list of whole numbers, at least one")
    if int(items.min()) < 0 or int(items.max()) >= len(held):
        wrong = int(((items < 0) | (items >= len(held))).argmax())
        raise DataError(f"row {wrong} has item {items[wrong]}; there are {len(held):,} items, counted from 0")
    if (counts < 1).any() or counts.sum() != len(items):
        raise DataError(
            f"lengths add up to {int(counts.sum()):,} and the least is {int(counts.min())}; want {len(items):,} rows"
        )
    named = [str(n) for n in range(len(held))] if names is None else ids_of(names, "names")
    sequences = [f"{m:06d}" for m in range(len(counts))] if documents is None else ids_of(documents, "documents")
    for found, wanted, what in ((named, len(held), "items"), (sequences, len(counts), "documents")):
        if len(found) != wanted or len(set(found)) < wanted:
            raise DataError(f"{len(set(found))} different ids for {wanted} {what}; give each its own")
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return ItemArrays(held, items.astype(np.int32), offsets, named, sequences)


def in_memory(
    arrays: ItemArrays, encoder: str, dtype: Dtype
) -> tuple[VectorTable, Sequences, Manifest, None, tuple[tuple[str, str], ...]]:
    """The parts of a bank of items in memory.

    Raises:
        DataError: a vector that cannot be used.
    """
    stored = stored_rows(arrays.vectors, "all", dtype, kind="items")
    names, documents = ([(name, name) for name in held] for held in (arrays.names, arrays.documents))
    digest = hashlib.sha256(stored.tobytes() + arrays.ids.tobytes() + arrays.offsets.tobytes())
    digest.update(repr((names, documents, encoder)).encode())
    manifest = Manifest(
        len(arrays.ids), stored.shape[1], len(documents), dtype, encoder, encoder, digest.hexdigest(), False, "none", "memory",
        WITH_ITEMS, items=len(stored),
    )  # fmt: skip
    return VectorTable(stored, manifest, None, names), Sequences(arrays.offsets, arrays.ids), manifest, None, tuple(documents)
