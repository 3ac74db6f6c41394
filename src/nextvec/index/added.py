"""Memory of the rows that were added to an index."""

import numpy as np

from nextvec.kernels.memory import aligned
from nextvec.kernels.scan_rows import Stored


def grown(held: Stored | None, like: Stored, least: int, first: int) -> Stored:
    """Memory for twice as many rows as needed, so that each row is moved about once in total.

    Args:
        held: the rows that were added before, which are copied.
        like: rows of the same width and formats.
        least: number of rows needed.
        first: number of the first row.
    """
    room = 2 * least

    def larger(old: np.ndarray | None, new: np.ndarray) -> np.ndarray:
        memory = aligned((room if len(new) else 0, *new.shape[1:]), new.dtype)
        if old is not None:
            memory[: len(old)] = old
        return memory

    names = ("rows", "codes", "scales", "errors")
    rows, codes, scales, errors = (larger(None if held is None else getattr(held, name), getattr(like, name)) for name in names)
    return Stored(rows, rows if like.codes is like.rows else codes, scales, errors, 0.0, 0.0, first)
