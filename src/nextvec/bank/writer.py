"""The writer of banks: it appends whole documents, commits, and publishes the bank by one rename.

While it grows, a bank lies in ``NAME.partial`` with a journal of committed
file sizes. A writer killed at any moment leaves that folder; the next one cuts
the files back to the last commit and goes on from that document. A writer
locks the folder before it reads or changes anything in it, and holds the lock
until the bank has its name: a second writer of the name is refused.
"""

# Axes: T chunks of one document, D width.

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from nextvec.bank import layout
from nextvec.bank.bank import Bank
from nextvec.bank.census import census
from nextvec.bank.documents import Dtype, VectorDocument, byte_spans, stored_rows
from nextvec.bank.layout import Manifest
from nextvec.bank.verification import content_fingerprint
from nextvec.errors import DataError
from nextvec.progress import Progress, silent

JOURNAL, LOCK = "journal.json", "writer.lock"


class BankWriter:
    """Appends documents to a bank under construction. The module docstring describes recovery after a crash.

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
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._refuse_published()
        self._plan = Manifest(0, dim, 0, dtype, encoder, encoder_fingerprint, "", text, chunking, source, max_tokens=max_tokens)
        self._names = [layout.ROWS, layout.OFFSETS, layout.DOCUMENTS]
        if text:
            self._names += [layout.TEXT, layout.SPANS, layout.TOKENS]
        self.rows, self._ids = 0, set[str]()
        self._files: dict[str, BinaryIO] = {}
        self._lock = locked(self.partial)
        try:
            if self.path.exists():  # another writer published it before this one had the lock
                self._remove_lock()
                self._refuse_published()
            self._sizes = self._resume()
            for name in self._names:
                self._files[name] = self._opened(name)
        except BaseException:
            self.close()
            raise
        if not self._sizes[layout.OFFSETS]:
            self._files[layout.OFFSETS].write(np.zeros(1, np.int64).tobytes())

    @property
    def documents(self) -> int:
        """Documents appended so far, including those of an earlier writer that was killed."""
        return len(self._ids)

    def append(self, document: VectorDocument) -> None:
        """Append one whole document.

        Raises:
            DataError: an empty document, an id twice, NaN, a zero row or a wrong width.
        """
        if document.id in self._ids:
            raise DataError(f"document {document.id!r} appears twice; ids must be unique")
        rows = stored_rows(document.vectors, document.id, self._plan.dtype, self._plan.dim)
        self._files[layout.ROWS].write(rows.tobytes())
        if self._plan.text:
            self._append_text(document, len(rows))
        self.rows += len(rows)
        self._ids.add(document.id)
        self._files[layout.OFFSETS].write(np.int64(self.rows).tobytes())
        entry = json.dumps({"id": document.id, "title": document.title}, ensure_ascii=False)
        self._files[layout.DOCUMENTS].write(f"{entry}\n".encode())

    def commit(self) -> None:
        """Make everything appended so far survive a crash."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self._files.items()}
        journal = {"plan": self._plan_json(), "rows": self.rows, "sizes": sizes}
        layout.write_atomically(self.partial / JOURNAL, json.dumps(journal))

    def finish(self, progress: Progress = silent) -> Bank:
        """Count duplicates, then publish the bank under its name.

        Raises:
            DataError: nothing was appended.
        """
        if not self.rows:
            raise DataError(f"{self.path}: no document had a single row")
        self.commit()
        self._close_files()
        manifest = replace(self._plan, rows=self.rows, documents=self.documents)
        replace(manifest, fingerprint=content_fingerprint(self.partial, manifest)).write(self.partial)
        progress("looking for duplicates", 0, 1)
        census(Bank.open(self.partial, "never"))
        progress("looking for duplicates", 1, 1)
        os.replace(self.partial, self.path)
        # Not earlier, because a writer that is killed before the rename needs the journal.
        for name in (JOURNAL, LOCK):
            (self.path / name).unlink()
        self.close()
        return Bank.open(self.path, "never")

    def discard(self) -> None:
        """Delete the partial bank; do nothing if the bank is published or this writer is closed."""
        self._close_files()
        if not self._lock.closed:  # without the lock, the folder may be another writer's
            with suppress(OSError):
                self._clear()
            self._remove_lock()
        self.close()

    def close(self) -> None:
        """Let another writer continue from the last commit."""
        self._close_files()
        self._lock.close()

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()

    def _refuse_published(self) -> None:
        if self.path.exists():
            raise DataError(f"{self.path} already exists; choose another name or delete it first")

    def __enter__(self) -> "BankWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Delete the partial bank after a DataError; after other errors, keep the commits so that the next writer continues."""
        if kind is not None and issubclass(kind, DataError):
            self.discard()
        self.close()

    def _append_text(self, document: VectorDocument, rows: int) -> None:
        if document.text is None or document.spans is None or len(document.spans) != rows:
            raise DataError(f"document {document.id!r} has {rows} rows but not as many text spans")
        base = self._files[layout.TEXT].tell()
        spans = base + byte_spans(document.text, document.spans)
        self._files[layout.TEXT].write(document.text.encode())
        self._files[layout.SPANS].write(spans.tobytes())
        tokens = np.zeros(rows, np.int32) if document.tokens is None else np.asarray(document.tokens, np.int32)
        self._files[layout.TOKENS].write(tokens.tobytes())

    def _plan_json(self) -> dict[str, Any]:
        return {key: getattr(self._plan, key) for key in ("dim", "dtype", "encoder_fingerprint", "chunking", "source", "text")}

    def _resume(self) -> dict[str, int]:
        journal_path = self.partial / JOURNAL
        for name in (layout.CENSUS, layout.VERIFIED, layout.MANIFEST):  # of a writer killed just before it published
            (self.partial / name).unlink(missing_ok=True)
        for left in self.partial.glob(".*.tmp"):  # of a writer killed while it wrote a file atomically
            left.unlink()
        if not journal_path.exists():
            self._clear()
            return dict.fromkeys(self._names, 0)
        journal: dict[str, Any] = layout.read_json(journal_path)
        if journal["plan"] != self._plan_json():
            changed = [key for key, value in self._plan_json().items() if journal["plan"].get(key) != value]
            raise DataError(
                f"{self.partial} was begun with another {', '.join(changed)}; delete it to start over, or use its settings"
            )
        self.rows = journal["rows"]
        with open(self.partial / layout.DOCUMENTS, "rb") as file:
            committed = file.read(journal["sizes"][layout.DOCUMENTS])
        self._ids = {json.loads(line)["id"] for line in committed.splitlines()}
        return journal["sizes"]

    def _clear(self) -> None:
        for left in self.partial.iterdir():
            if left.name != LOCK:
                left.unlink()

    def _remove_lock(self) -> None:
        """Remove the lock's file, and the folder where nothing else lies in it."""
        with suppress(OSError):
            (self.partial / LOCK).unlink()
            self.partial.rmdir()

    def _opened(self, name: str) -> BinaryIO:
        file = open(self.partial / name, "ab")
        file.truncate(self._sizes[name])  # bytes after the last commit may be incomplete
        file.seek(0, os.SEEK_END)
        return file


def locked(folder: Path) -> BinaryIO:
    """Make ``folder`` if there is none, and lock it until the returned file is closed or the process ends.

    Raises:
        DataError: another writer holds the lock.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another writer published or removed the folder; try again
            lock = open(folder / LOCK, "ab")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat()):
                    return lock
            except BlockingIOError:
                lock.close()
                raise DataError(f"{folder} is being written by another process") from None
            except FileNotFoundError:
                pass
            lock.close()
