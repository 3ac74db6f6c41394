"""The rows of a bank as a model compares them: mapped once, when an index is built or opened."""

# Axes: N rows, U distinct vectors, D width, E width of mapped rows.

import numpy as np
from jaxtyping import Float, Float32

from nextvec.bank import Bank
from nextvec.errors import DataError
from nextvec.index.protocol import RowMap
from nextvec.kernels.memory import aligned
from nextvec.progress import Progress, silent

BLOCK = 4_096  # rows that are mapped at once


def mapped(rows: Float[np.ndarray, "N D"], mapping: RowMap) -> Float32[np.ndarray, "N E"]:
    """
    Raises:
        DataError: a mapped row is not finite.
    """
    found = mapping(rows.astype(np.float32, copy=False))
    if not np.isfinite(found).all():
        raise DataError("the model maps a row to numbers that are not finite (NaN or infinity); the model is broken")
    return found


def mapped_bank(bank: Bank, mapping: RowMap, progress: Progress = silent) -> Float32[np.ndarray, "U E"]:
    """The distinct vectors of a bank, mapped.

    Raises:
        DataError: a mapped row is not finite.
    """
    firsts = bank.distinct.firsts
    out: np.ndarray | None = None
    for start in range(0, len(firsts), BLOCK):
        block = mapped(bank.table.vectors[firsts[start : start + BLOCK]], mapping)
        if out is None:
            out = aligned((len(firsts), block.shape[1]), np.dtype(np.float32))
        out[start : start + len(block)] = block
        progress("mapping rows", start + len(block), len(firsts))
    assert out is not None, "a bank has rows"
    return out
