"""Arrays of the files of banks, indexes and lanes, memory-mapped."""

from pathlib import Path

import numpy as np

from nextvec.errors import DataError


def mapped_array(path: Path, dtype: np.dtype, shape: tuple[int, ...], remedy: str) -> np.ndarray:
    """The file as a read-only array; an empty array where the shape has no entries.

    Args:
        remedy: what to do about a damaged file, for the message.

    Raises:
        DataError: the file is missing or of another size.
    """
    wanted = int(np.prod(shape)) * dtype.itemsize
    if not path.is_file() or path.stat().st_size != wanted:
        got = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
        raise DataError(f"{path} is damaged: {got} where the manifest says {wanted:,} bytes; {remedy}")
    return np.memmap(path, dtype=dtype, mode="r", shape=shape) if wanted else np.empty(shape, dtype)
