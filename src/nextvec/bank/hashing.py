"""Hashes that find identical rows; the same on every machine and in every version."""

# Axes: N rows, D width.

import numpy as np
from jaxtyping import Float, UInt64

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 65_536


def row_hashes(rows: Float[np.ndarray, "N D"]) -> UInt64[np.ndarray, " N"]:
    """A 64-bit hash of each row's bits: every 8 bytes are folded in by :func:`mix64`.

    Among ten million rows, two different ones share a hash with a probability of about 3 in a million.
    """
    width = rows.shape[1] * rows.itemsize
    words = -(-width // 8)
    hashes = np.empty(len(rows), dtype=np.uint64)
    for start in range(0, len(rows), BLOCK):
        block = np.ascontiguousarray(rows[start : start + BLOCK])
        padded = np.zeros((len(block), words * 8), dtype=np.uint8)
        padded[:, :width] = block.view(np.uint8).reshape(len(block), width)
        mixed = np.full(len(block), GOLDEN)
        for word in np.ascontiguousarray(padded.view(np.uint64).T):
            mixed = mix64((mixed ^ word) + GOLDEN)
        hashes[start : start + BLOCK] = mixed
    return hashes


def mix64(z: UInt64[np.ndarray, " N"]) -> UInt64[np.ndarray, " N"]:
    """The finaliser of splitmix64 (Steele et al. 2014): each bit of the input changes half of the bits of the output."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
