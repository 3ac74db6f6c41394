"""The bank: rows of unit vectors, documents as offsets into them, chunk texts as spans."""

# Axes: N rows, D width, M documents.

import json
import mmap
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
from nextvec.bank.verification import Verify
from nextvec.bank.verification import verify as check
from nextvec.errors import DataError
from nextvec.progress import Progress, silent

REMEDY = "ingest the source again"


@dataclass(frozen=True, eq=False)
class Bank:
    """Rows of unit length in the order of their documents, memory-mapped when opened.

    Attributes:
        rows: [N, D] float16 or float32, unit length, memory-mapped when opened from disk.
        offsets: [M + 1]; document ``m`` is rows ``offsets[m]:offsets[m + 1]``.
        manifest: size, encoder and fingerprint.
        path: the folder, or None for a bank in memory.
    """

    rows: Float[np.ndarray, "N D"]
    offsets: Int64[np.ndarray, " offsets"]
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
        rows = mapped_array(folder / layout.ROWS, np.dtype(m.dtype), (m.rows, m.dim), REMEDY)
        offsets = mapped_array(folder / layout.OFFSETS, np.dtype(np.int64), (m.documents + 1,), REMEDY)
        documents = folder / layout.DOCUMENTS
        if not documents.is_file():
            raise DataError(f"{documents} is damaged: no file; ingest the source again")
        check(folder, m, verify, progress)
        return Bank(rows, offsets, m, folder)

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
        return Bank(rows, offsets, manifest, None, names)

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
    def lengths(self) -> Int64[np.ndarray, " M"]:
        return np.diff(self.offsets)

    def document(self, m: int) -> Float[np.ndarray, "T D"]:
        """Rows of document ``m``: a view, never a copy."""
        return self.rows[self.offsets[m] : self.offsets[m + 1]]

    def document_of(self, rows: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
        """The document that each row belongs to."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    @cached_property
    def distinct(self) -> Distinct:
        """Which rows hold the same vector; found on first use by reading all rows once, and kept in memory."""
        return Distinct.of(self.rows)

    @cached_property
    def new_in_document(self) -> Bool[np.ndarray, " N"]:
        """For each row, whether no earlier row of its document holds the same vector; found on first use, kept in memory."""
        owner = self.document_of(np.arange(len(self), dtype=np.int64))
        new = np.zeros(len(self), dtype=bool)
        new[np.unique(self.distinct.numbers * self.num_documents + owner, return_index=True)[1]] = True
        return new

    @cached_property
    def documents(self) -> Sequence[tuple[str, str]]:
        """(id, title) of every document; read on first use."""
        if self.path is None:
            return self.memory_documents
        path = self.path / layout.DOCUMENTS
        try:
            with open(path, encoding="utf-8") as lines:
                entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
            named = [(str(entry["id"]), str(entry["title"])) for entry in entries]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error}; ingest the source again") from None
        if len(named) != self.num_documents:
            raise DataError(f"{path} is damaged: {len(named)} documents where the manifest says {self.num_documents}")
        return named

    @property
    def ids(self) -> list[str]:
        return [name for name, _ in self.documents]

    def text(self, row: int) -> str | None:
        """The text of the chunk of a row, or None if the bank holds vectors only."""
        if not self.manifest.text or not 0 <= row < len(self):
            return None
        start, stop = self._spans[row]
        if stop > len(self._text):
            raise DataError(f"{self.path}: text ends before the span of row {row}; ingest the source again")
        return self._text[start:stop].decode("utf-8")

    @cached_property
    def tokens(self) -> Int32[np.ndarray, " N"] | None:
        """Tokens of each chunk, as the encoder counted them before truncation."""
        if self.path is None or not (self.path / layout.TOKENS).exists():
            return None
        return mapped_array(self.path / layout.TOKENS, np.dtype(np.int32), (len(self),), REMEDY)

    @cached_property
    def _spans(self) -> Int64[np.ndarray, "N 2"]:
        assert self.path is not None
        return mapped_array(self.path / layout.SPANS, np.dtype(np.int64), (len(self), 2), REMEDY)

    @cached_property
    def _text(self) -> mmap.mmap:
        assert self.path is not None
        with open(self.path / layout.TEXT, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
