"""The bank: a table of unit vectors, and documents as sequences of its items."""

# Axes: N rows, V items, U distinct vectors, D width, M documents.

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64

from nextvec.bank import layout
from nextvec.bank.arrays import documents_of
from nextvec.bank.distinct import Distinct
from nextvec.bank.documents import Dtype, VectorDocument, stacked
from nextvec.bank.layout import Manifest
from nextvec.bank.mapped import mapped_array
from nextvec.bank.memory_items import in_memory, item_arrays
from nextvec.bank.sequences import Rows, Sequences
from nextvec.bank.vector_table import REMEDY, VectorTable, read_names
from nextvec.bank.verification import Verify
from nextvec.bank.verification import verify as check
from nextvec.errors import DataError
from nextvec.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class Bank:
    """Rows in the order of their documents. Each row holds an item, and each item has one vector of unit length.

    A prediction reads rows and names items. In a bank of texts, row n holds item n. In a bank of items, such as the events
    of a shop, many rows hold one item, and an item that no row holds is a candidate too.

    Attributes:
        table: the items: vectors, names, texts.
        sequences: the item of each row, and the documents.
        manifest: size, encoder and fingerprint.
        path: the folder, or None for a bank in memory.
    """

    table: VectorTable
    sequences: Sequences
    manifest: Manifest
    path: Path | None = None
    memory_documents: Sequence[tuple[str, str]] = field(default=(), repr=False)

    @staticmethod
    def open(path: str | Path, verify: Verify = "once", progress: Progress = silent) -> "Bank":
        """Open the bank in folder ``path``, memory-mapped. After its content was verified once, opening takes milliseconds.

        Args:
            verify: when its content is compared with its fingerprint: ``once`` after each change of its files
                (:func:`~nextvec.bank.verification.verify`), ``always``, or ``never``.

        Raises:
            DataError: no bank there, another format, files shorter than the manifest says, or other content.
        """
        folder = Path(path)
        m = Manifest.read(folder)
        vectors = mapped_array(folder / layout.ROWS, np.dtype(m.dtype), (m.vectors, m.dim), REMEDY)
        offsets = mapped_array(folder / layout.OFFSETS, np.dtype(np.int64), (m.documents + 1,), REMEDY)
        ids = None if m.items is None else mapped_array(folder / layout.IDS, np.dtype(np.int32), (m.rows,), REMEDY)
        times = None if m.times is None else mapped_array(folder / layout.TIMES, np.dtype(m.times), (m.rows,), REMEDY)
        for name in m.content:
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is damaged: no file; {REMEDY}")
        check(folder, m, verify, progress)
        return Bank(VectorTable(vectors, m, folder), Sequences(offsets, ids, times), m, folder)

    @staticmethod
    def from_numpy(vectors: Any, lengths: Any = None, ids: Any = None, encoder: str = "unknown") -> "Bank":
        """A bank in memory.

        Args:
            vectors: [N, D] in document order: an array, a tensor, lists of numbers; or, without ``lengths``, a table or
                dataframe with ``vector``, ``document`` and ``index`` (see :func:`~nextvec.bank.objects.table_of`).
            lengths: [M] rows of each document.
            ids: [M] strings or whole numbers; by default documents are counted from 0.
            encoder: name of the encoder that made the vectors.

        Raises:
            DataError: NaN, zero rows, empty documents, lengths that do not add up, or arguments of other types.
        """
        return Bank.from_documents(*documents_of(vectors, lengths, ids, encoder))

    @staticmethod
    def from_documents(documents: Iterable[VectorDocument], encoder: str, dtype: Dtype = "float16") -> "Bank":
        """A bank in memory, of vectors only: the texts of the documents are left out.

        Raises:
            DataError: no document, an id twice, an empty document, or vectors that cannot be used.
        """
        rows, offsets, manifest, names = stacked(documents, encoder, dtype)
        return Bank(VectorTable(rows, manifest), Sequences(offsets), manifest, None, names)

    @staticmethod
    def from_items(
        vectors: Any,
        ids: Any,
        lengths: Any,
        names: Any = None,
        documents: Any = None,
        encoder: str = "unknown",
        dtype: Dtype = "float16",
    ) -> "Bank":
        """A bank in memory of items, each stored once, and of documents whose rows name them.

        Args:
            vectors: [V, D] of the items: an array, a tensor, lists of numbers.
            ids: [N] the number of the item of each row, from 0 to V - 1.
            lengths: [M] rows of each document.
            names: [V] ids of the items, strings or whole numbers; by default they are counted from 0.
            documents: [M] ids of the documents, likewise.
            encoder: name of the encoder that made the vectors.

        Raises:
            DataError: a vector that cannot be used, an item that does not exist, lengths that do not add up to the rows.
        """
        return Bank(*in_memory(item_arrays(vectors, ids, lengths, names, documents), encoder, dtype))

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def dim(self) -> int:
        return self.manifest.dim

    @property
    def num_documents(self) -> int:
        return self.manifest.documents

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def rows(self) -> Rows:
        """[N, D] the vector of each row; of a bank of items, gathered when it is read."""
        return self.sequences.rows(self.table.vectors)

    @property
    def offsets(self) -> Int64[np.ndarray, " offsets"]:
        """[M + 1]; document ``m`` is rows ``offsets[m]:offsets[m + 1]``."""
        return self.sequences.offsets

    @property
    def lengths(self) -> Int64[np.ndarray, " M"]:
        return np.diff(self.offsets)

    def document(self, m: int) -> Float[np.ndarray, "T D"]:
        """Rows of document ``m``: a view where each row is an item of its own."""
        return self.rows[self.offsets[m] : self.offsets[m + 1]]

    def document_of(self, rows: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
        """The document that each row belongs to."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    @property
    def distinct(self) -> Distinct:
        """Which items hold the same vector."""
        return self.table.distinct

    @cached_property
    def classes(self) -> Int64[np.ndarray, " N"]:
        """For each row, the first item that holds its vector; found on first use, kept in memory."""
        classes = self.distinct.classes
        return classes if self.sequences.ids is None else classes[self.sequences.ids]

    @cached_property
    def first_rows(self) -> Int64[np.ndarray, " U"]:
        """For each distinct vector, the first row that holds it; vectors that no row holds are numbered on from N."""
        if self.sequences.ids is None:
            return self.distinct.firsts
        first = np.full(len(self.distinct), -1, np.int64)
        first[self.distinct.numbers[self.sequences.ids[::-1]]] = np.arange(len(self) - 1, -1, -1)  # the lowest row stays
        unread = np.flatnonzero(first < 0)
        first[unread] = len(self) + np.arange(len(unread))
        return first

    @cached_property
    def new_in_document(self) -> Bool[np.ndarray, " N"]:
        """For each row, whether no earlier row of its document holds the same vector; found on first use, kept in memory."""
        owner = self.document_of(np.arange(len(self), dtype=np.int64))
        new = np.zeros(len(self), dtype=bool)
        new[np.unique(self.classes * self.num_documents + owner, return_index=True)[1]] = True
        return new

    @cached_property
    def documents(self) -> Sequence[tuple[str, str]]:
        """(id, title) of every document; read on first use."""
        if self.path is None:
            return self.memory_documents
        return read_names(self.path / layout.DOCUMENTS, self.num_documents, "documents")

    @property
    def ids(self) -> list[str]:
        return [name for name, _ in self.documents]

    def title(self, item: int) -> str:
        """The title of an item; in a bank of texts, that of the document that holds it."""
        names = self.table.names
        return names[item][1] if names is not None else self.documents[int(self.document_of(np.array([item]))[0])][1]

    def text(self, row: int) -> str | None:
        """The text of the item of a row, or None if the bank holds vectors only."""
        return self.table.text(int(self.sequences.items(np.array([row]))[0])) if 0 <= row < len(self) else None

    @cached_property
    def tokens(self) -> Int32[np.ndarray, " N"] | None:
        """Tokens of the text of each row, as the encoder counted them before truncation."""
        tokens, ids = self.table.tokens, self.sequences.ids
        return tokens if tokens is None or ids is None else tokens[ids]
