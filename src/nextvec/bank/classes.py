"""The distinct vectors of a bank on disk: found once, when the bank is written, and read by every later process."""

# Axes: V items.

import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from nextvec.bank import layout

DIGEST = hashlib.sha256().digest_size


def keep_classes(folder: Path, fingerprint: str, classes: Int64[np.ndarray, " V"]) -> None:
    """Write for each item the first one that holds the same vector, in 4 bytes; nothing but a hash where none repeats another.

    Nothing is written where the folder cannot be written.

    Args:
        fingerprint: of the bank.
    """
    repeats = (classes != np.arange(len(classes))).any()
    content = classes.astype("<i4").tobytes() if repeats else b""
    layout.keep(folder / layout.CLASSES, _hash(fingerprint, content) + content)


def read_classes(folder: Path, fingerprint: str, count: int) -> Int64[np.ndarray, " V"] | None:
    """What :func:`keep_classes` wrote for this content; None if it is missing, damaged, or of another bank.

    Args:
        count: number of items.
    """
    try:
        held = (folder / layout.CLASSES).read_bytes()
    except OSError:
        return None
    content = held[DIGEST:]
    if held[:DIGEST] != _hash(fingerprint, content):
        return None
    if not content:
        return np.arange(count, dtype=np.int64)
    return np.frombuffer(content, "<i4").astype(np.int64) if len(content) == 4 * count else None


def _hash(fingerprint: str, content: bytes) -> bytes:
    return hashlib.sha256(fingerprint.encode() + content).digest()
