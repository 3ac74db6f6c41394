"""The writer of banks of documents: every row is an item of its own."""

# Axes: D width.

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from nextvec.bank import layout
from nextvec.bank.bank import Bank
from nextvec.bank.documents import Dtype, VectorDocument, stored_rows
from nextvec.bank.layout import Manifest
from nextvec.bank.partial import PartialBank
from nextvec.errors import DataError
from nextvec.progress import Progress, silent


class BankWriter(PartialBank):
    """Appends whole documents to a bank under construction. ``partial.py`` describes recovery after a crash.

    The arguments decide the content (source, chunking, encoder). A writer with
    other arguments refuses to continue a partial bank.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        encoder: str,
        encoder_fingerprint: str,
        dim: int,
        dtype: Dtype = "float16",
        chunking: str = "none",
        source: str = "memory",
        text: bool = False,
        max_tokens: int | Literal["any"] | None = None,
    ) -> None:
        plan = Manifest(0, dim, 0, dtype, encoder, encoder_fingerprint, "", text, chunking, source, max_tokens=max_tokens)
        super().__init__(path, plan, (layout.ROWS, layout.OFFSETS, layout.DOCUMENTS), layout.DOCUMENTS)
        if not self.files[layout.OFFSETS].tell():
            self.files[layout.OFFSETS].write(np.zeros(1, np.int64).tobytes())

    @property
    def documents(self) -> int:
        """Documents appended so far, including those of an earlier writer that was killed."""
        return len(self.names)

    def append(self, document: VectorDocument) -> None:
        """Append one whole document.

        Raises:
            DataError: an empty document, an id twice, NaN, a zero row or a wrong width.
        """
        if document.id in self.names:
            raise DataError(f"document {document.id!r} appears twice; ids must be unique")
        rows = stored_rows(document.vectors, document.id, self.plan.dtype, self.plan.dim)
        self.files[layout.ROWS].write(rows.tobytes())
        if self.plan.text:
            self._append_text(document, len(rows))
        self.rows += len(rows)
        self.names.add(document.id)
        self.files[layout.OFFSETS].write(np.int64(self.rows).tobytes())
        self.append_name(layout.DOCUMENTS, document.id, document.title)

    def finish(self, progress: Progress = silent) -> Bank:
        """Count duplicates, then publish the bank under its name.

        Raises:
            DataError: nothing was appended.
        """
        if not self.rows:
            raise DataError(f"{self.path}: no document had a single row")
        return self.publish(replace(self.plan, rows=self.rows, documents=self.documents), progress)

    def _append_text(self, document: VectorDocument, rows: int) -> None:
        if document.text is None or document.spans is None or len(document.spans) != rows:
            raise DataError(f"document {document.id!r} has {rows} rows but not as many text spans")
        tokens = np.zeros(rows, np.int32) if document.tokens is None else document.tokens
        self.append_text(document.text, document.spans, tokens)
