"""What a search is given, checked: queries, rows that are no answer, documents to look in."""

# Axes: Q queries, D width, V items.

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from nextvec.bank import Bank
from nextvec.errors import DataError, SettingsError
from nextvec.index.protocol import Queries


def as_array(queries_QD: Queries, dim: int) -> Float32[np.ndarray, "Q D"]:
    """
    Raises:
        DataError: queries of another width.
    """
    if queries_QD.ndim != 2 or queries_QD.shape[1] != dim:
        raise DataError(f"queries have shape {list(queries_QD.shape)}; want [queries, {dim}]")
    if isinstance(queries_QD, np.ndarray):
        return queries_QD.astype(np.float32, copy=False)
    return queries_QD.detach().float().cpu().numpy()


def check_k(k: int) -> None:
    """
    Raises:
        SettingsError: k below 1.
    """
    if k < 1:
        raise SettingsError(f"k={k}: k must be at least 1")


def allowed_rows(bank: Bank, documents: Iterable[int]) -> Bool[np.ndarray, " V"]:
    """The items of the given documents, as a mask for ``search(allowed=...)``.

    Raises:
        DataError: a document that does not exist.
    """
    mask = np.zeros(len(bank.table), bool)
    for m in documents:
        if not 0 <= m < bank.num_documents:
            raise DataError(f"there is no document {m}; the bank has {bank.num_documents}, counted from 0")
        mask[bank.sequences.items(slice(int(bank.offsets[m]), int(bank.offsets[m + 1])))] = True
    return mask


def checked_rows(rows: Sequence[Int64[np.ndarray, "..."]], queries: int, size: int) -> list[Int64[np.ndarray, " _"]]:
    """One list of row numbers for each query, all of them valid.

    Raises:
        DataError: another number of lists than queries, or a row that does not exist.
    """
    if len(rows) != queries:
        raise DataError(f"{queries} queries need as many lists of excluded rows, not {len(rows)}")
    lists = [np.asarray(names, dtype=np.int64).reshape(-1) for names in rows]
    for names in lists:
        if len(names) and (names.min() < 0 or names.max() >= size):
            wrong = names[(names < 0) | (names >= size)][0]
            raise DataError(f"there is no row {wrong}; the index has {size:,}, counted from 0")
    return lists
