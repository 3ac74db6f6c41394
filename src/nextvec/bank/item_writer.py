"""The writer of banks of items: each item is stored once, and every row of a document names one."""

# Axes: B items of a block, D width, N rows, M documents.

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int32

from nextvec.bank import layout
from nextvec.bank.bank import Bank
from nextvec.bank.documents import stored_rows
from nextvec.bank.layout import WITH_ITEMS, Manifest
from nextvec.bank.partial import PartialBank
from nextvec.bank.sequences import Sequences
from nextvec.errors import DataError
from nextvec.progress import Progress, silent


@dataclass(frozen=True)
class Items:
    """Some items in the order of the bank.

    Attributes:
        names: (id, title) of each; an item without a title has its id as the title.
        vectors: [B, D], any length; stored as unit rows.
        texts: of each, or None where the bank has no texts.
        tokens: [B] of the texts; 0 where they were not counted.
    """

    names: Sequence[tuple[str, str]]
    vectors: Float[np.ndarray, "B D"]
    texts: Sequence[str] | None = None
    tokens: Int32[np.ndarray, " B"] | None = None


class ItemWriter(PartialBank):
    """Appends items to a bank under construction, then its sequences. ``partial.py`` describes recovery after a crash."""

    def __init__(self, path: str | Path, plan: Manifest) -> None:
        """
        Args:
            plan: width, dtype, encoder, source and whether there are texts; decides the content.
        """
        files = (layout.ROWS, layout.ITEMS, layout.IDS, layout.OFFSETS, layout.DOCUMENTS)
        timed = () if plan.times is None else (layout.TIMES,)
        super().__init__(path, replace(plan, format=WITH_ITEMS), (*files, *timed), layout.ITEMS)

    def append(self, items: Items) -> None:
        """Append items; they are numbered in the order in which they are appended.

        Raises:
            DataError: an id twice, NaN, a zero vector or a wrong width; names the item.
        """
        for name, _ in items.names:
            if name in self.names:
                raise DataError(f"item {name!r} appears twice; ids must be unique")
            self.names.add(name)
        self.files[layout.ROWS].write(stored_items(items, self.plan).tobytes())
        for name, title in items.names:
            self.append_name(layout.ITEMS, name, None if title == name else title)
        if self.plan.text:
            texts = items.texts or [""] * len(items.names)
            stops = np.cumsum([len(text) for text in texts])
            spans = np.stack([stops - [len(text) for text in texts], stops], axis=1)
            tokens = np.zeros(len(texts), np.int32) if items.tokens is None else items.tokens
            self.append_text("".join(texts), spans, tokens)
        self.rows += len(items.names)

    def finish(self, documents: Sequence[str], sequences: Sequences, progress: Progress = silent) -> Bank:
        """Write the sequences, count duplicates, then publish the bank under its name.

        Args:
            documents: [M] their ids.

        Raises:
            DataError: no items or no rows, or a row of an item that was not appended.
        """
        ids, times = sequences.ids, sequences.times
        if ids is None or not len(ids):
            raise DataError(f"{self.path}: no item occurs in a document; a bank needs at least one row")
        if int(ids.min()) < 0 or int(ids.max()) >= self.rows:
            raise DataError(f"{self.path}: a row has item {int(ids.max())}; there are {self.rows:,}, counted from 0")
        arrays = {layout.IDS: ids.astype(np.int32), layout.OFFSETS: sequences.offsets.astype(np.int64)}
        if times is not None and self.plan.times is not None:
            arrays[layout.TIMES] = times.astype(self.plan.times)
        for name in (*arrays, layout.DOCUMENTS):
            self.files[name].seek(0)
            self.files[name].truncate()  # a writer that was killed while it finished may have written some
        for name, array in arrays.items():
            self.files[name].write(array.data)
        for name in documents:
            self.append_name(layout.DOCUMENTS, name, None)
        return self.publish(replace(self.plan, rows=len(ids), documents=len(documents), items=self.rows), progress)


def stored_items(items: Items, plan: Manifest) -> Float[np.ndarray, "B D"]:
    """The vectors of items as a bank stores them.

    Raises:
        DataError: a vector that cannot be used; names its item.
    """
    try:
        return stored_rows(items.vectors, "items", plan.dtype, plan.dim)
    except DataError:
        for (name, _), vector in zip(items.names, items.vectors, strict=True):
            stored_rows(vector[None], name, plan.dtype, plan.dim, "item")
        raise
