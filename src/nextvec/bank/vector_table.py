"""The table of a bank: the vectors, names and texts of its items."""

# Axes: V items, D width.

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, Int64

from nextvec.bank import layout
from nextvec.bank.classes import keep_classes, read_classes
from nextvec.bank.distinct import Distinct
from nextvec.bank.layout import Manifest
from nextvec.bank.mapped import mapped_array
from nextvec.errors import DataError

REMEDY = "ingest the source again"


@dataclass(frozen=True, eq=False)
class VectorTable:
    """The items of a bank: what a prediction names. In a bank of texts every row is an item of its own.

    Attributes:
        vectors: [V, D] float16 or float32, unit length, memory-mapped when opened from disk.
        manifest: of the bank.
        path: the folder of the bank, or None for a bank in memory.
    """

    vectors: Float[np.ndarray, "V D"]
    manifest: Manifest
    path: Path | None = None
    memory_names: Sequence[tuple[str, str]] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def distinct(self) -> Distinct:
        """Which items hold the same vector.

        A bank on disk keeps the result beside its vectors, if its folder can be written. Without a kept result, all vectors
        are read once.
        """
        if self.path is None:
            return Distinct.of(self.vectors)
        kept = read_classes(self.path, self.manifest.fingerprint, len(self))
        if kept is not None:
            return Distinct.named(self.vectors, kept)
        found = Distinct.of(self.vectors)
        keep_classes(self.path, self.manifest.fingerprint, found.classes)
        return found

    @cached_property
    def names(self) -> Sequence[tuple[str, str]] | None:
        """(id, title) of every item; None in a bank of texts, whose rows have none of their own. Read on first use."""
        if self.path is None or self.manifest.items is None:
            return self.memory_names
        return read_names(self.path / layout.ITEMS, len(self), "items")

    def text(self, item: int) -> str | None:
        """The text of an item, or None if the bank holds vectors only."""
        if not self.manifest.text or not 0 <= item < len(self):
            return None
        start, stop = self._spans[item]
        if stop > len(self._text):
            raise DataError(f"{self.path}: text ends before the span of row {item}; ingest the source again")
        return self._text[start:stop].decode("utf-8")

    @cached_property
    def tokens(self) -> Int32[np.ndarray, " V"] | None:
        """Tokens of each text, as the encoder counted them before truncation."""
        if self.path is None or not (self.path / layout.TOKENS).exists():
            return None
        return mapped_array(self.path / layout.TOKENS, np.dtype(np.int32), (len(self),), REMEDY)

    @cached_property
    def _spans(self) -> Int64[np.ndarray, "V 2"]:
        assert self.path is not None
        return mapped_array(self.path / layout.SPANS, np.dtype(np.int64), (len(self), 2), REMEDY)

    @cached_property
    def _text(self) -> mmap.mmap | bytes:
        assert self.path is not None
        with open(self.path / layout.TEXT, "rb") as file:
            # An empty file cannot be mapped: no item has a text.
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""


def read_names(path: Path, count: int, what: str) -> list[tuple[str, str]]:
    """(id, title) of every line of ``documents.jsonl`` or ``items.jsonl``; the title is the id where there is none.

    Args:
        count: number of lines that the manifest states.
        what: ``documents`` or ``items``, for the message.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with open(path, encoding="utf-8") as lines:
            entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
        named = [(str(entry["id"]), str(entry.get("title", entry["id"]))) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}; {REMEDY}") from None
    if len(named) != count:
        raise DataError(f"{path} is damaged: {len(named)} {what} where the manifest says {count}")
    return named
