"""A bank under construction: files that grow, commits, and publication by one rename.

While it grows, a bank lies in ``NAME.partial`` with a journal of committed
file sizes. A writer killed at any moment leaves that folder; the next one cuts
the files back to the last commit and goes on from there. A writer
locks the folder before it reads or changes anything in it, and holds the lock
until the bank has its name: a second writer of the name is refused.
"""

import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from nextvec.bank import layout
from nextvec.bank.bank import Bank
from nextvec.bank.census import census
from nextvec.bank.documents import byte_spans
from nextvec.bank.layout import Manifest
from nextvec.bank.verification import content_fingerprint
from nextvec.errors import DataError
from nextvec.progress import Progress, silent

JOURNAL, LOCK = "journal.json", "writer.lock"
DECIDES = (
    "dim",
    "dtype",
    "encoder_fingerprint",
    "chunking",
    "source",
    "text",
)  # fields of the manifest that decide the content

Writer = TypeVar("Writer", bound="PartialBank")


class PartialBank:
    """The files of a bank that is being written. The module docstring describes recovery after a crash.

    A partial bank that was begun with another plan is not continued.

    Attributes:
        path: where the bank will lie.
        partial: where it lies until it is finished.
        rows: vectors written so far, including those of an earlier writer that was killed.
        names: ids of the documents or items written so far.
    """

    def __init__(self, path: str | Path, plan: Manifest, files: Sequence[str], named: str) -> None:
        """
        Args:
            plan: what is known of the manifest before anything is written.
            files: names of the files.
            named: that of them whose lines have the ids.
        """
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._refuse_published()
        self.plan, self._named, self._names = plan, named, list(files)
        if plan.text:
            self._names += [layout.TEXT, layout.SPANS, layout.TOKENS]
        self.rows, self.names = 0, set[str]()
        self.files: dict[str, BinaryIO] = {}
        self._lock = locked(self.partial)
        try:
            if self.path.exists():  # another writer published it before this one had the lock
                self._remove_lock()
                self._refuse_published()
            self._sizes = self._resume()
            for name in self._names:
                self.files[name] = self._opened(name)
        except BaseException:
            self.close()
            raise

    def commit(self) -> None:
        """Make everything appended so far survive a crash."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self.files.items()}
        journal = {"plan": self._plan_json(), "rows": self.rows, "sizes": sizes}
        layout.write_atomically(self.partial / JOURNAL, json.dumps(journal))

    def publish(self, manifest: Manifest, progress: Progress = silent) -> Bank:
        """Count duplicates, then publish the bank under its name.

        Args:
            manifest: all but the fingerprint.
        """
        self.commit()
        self._close_files()
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

    def append_text(self, text: str, spans: Sequence[tuple[int, int]] | np.ndarray, tokens: Sequence[int] | np.ndarray) -> None:
        """Append a text, the character spans of its rows, and the tokens of each."""
        base = self.files[layout.TEXT].tell()
        self.files[layout.SPANS].write((base + byte_spans(text, spans)).tobytes())
        self.files[layout.TEXT].write(text.encode())
        self.files[layout.TOKENS].write(np.asarray(tokens, np.int32).tobytes())

    def append_name(self, file: str, name: str, title: str | None) -> None:
        """Append a line with an id and, unless it is None, a title."""
        entry = {"id": name} if title is None else {"id": name, "title": title}
        self.files[file].write(f"{json.dumps(entry, ensure_ascii=False)}\n".encode())

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

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Delete the partial bank after a DataError; after other errors, keep the commits so that the next writer continues."""
        if kind is not None and issubclass(kind, DataError):
            self.discard()
        self.close()

    def _close_files(self) -> None:
        for file in self.files.values():
            file.close()

    def _refuse_published(self) -> None:
        if self.path.exists():
            raise DataError(f"{self.path} already exists; choose another name or delete it first")

    def _plan_json(self) -> dict[str, Any]:
        return {key: getattr(self.plan, key) for key in DECIDES}

    def _resume(self) -> dict[str, int]:
        journal_path = self.partial / JOURNAL
        for name in (
            layout.CENSUS,
            layout.CLASSES,
            layout.VERIFIED,
            layout.MANIFEST,
        ):  # of a writer killed just before it published
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
        with open(self.partial / self._named, "rb") as file:
            committed = file.read(journal["sizes"][self._named])
        self.names = {json.loads(line)["id"] for line in committed.splitlines()}
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
