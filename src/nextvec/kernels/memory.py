"""Memory of arrays: aligned allocation, and addresses for compiled code."""

from math import prod
from typing import Any

import numpy as np


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An uninitialised array that starts at a cache line; reading an unaligned one touches two lines at every step."""
    size = prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -address(raw) % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def address(array: np.ndarray) -> int:
    """Where the array starts in memory.

    Raises:
        ValueError: the array is not contiguous.
    """
    if not array.flags.c_contiguous:
        raise ValueError(f"an array of shape {array.shape} is not contiguous")
    return array.__array_interface__["data"][0]
